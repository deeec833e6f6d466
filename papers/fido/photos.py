"""Job: packaged ImageNet photos with a plain ImageNet classifier and an in-fill that needs no training: a demonstration
at 224 px on a short schedule, without a verdict.

python -m papers.fido.photos --recipe '{"images": ["imagenet_16_251.jpg"], "steps": 40, "masks": 3}' --out DIR
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from common.classifiers.pretrained import load_classifier
from common.data.images import load_image
from common.errors import one_line_errors
from common.explain import Streams
from common.figures import image_grid, picture, save_figure, style
from common.files import sha256
from common.progress import Progress
from papers.fido.explain import explain, runner_up, short_schedule
from papers.fido.pictures import overlay

CLASSIFIER = "imagenet/efficientnet-lite0"
SHARES = (0.05, 0.1, 0.2)


def photo_grid(classifier: nn.Module, recipe: dict, data: Path, progress: Progress) -> Figure:
    """SSR and SDR maps of the class that is seen, and the photo whose most salient pixels are imputed; `recipe` has
    `images`, `steps` and `masks`."""
    photos = torch.stack([load_image(data / name, classifier.image_shape) for name in recipe["images"]])
    with torch.no_grad():
        p = classifier(photos).softmax(1)
    confidence, seen = p.max(1)
    target, rng = runner_up(classifier, photos, seen), Streams(0, tuple(recipe["images"]), tuple(seen.tolist()))
    steps, masks = recipe["steps"], recipe["masks"]
    settings = replace(short_schedule(photos), steps=steps, masks=masks, learning_rate=15 / steps, warm_up=steps // 10)
    rows, labels, names = [], [], classifier.class_names
    for objective in ("ssr", "sdr"):
        batch = explain(
            photos, seen, target, classifier=classifier, rng=rng, strengths=SHARES, objective=objective,
            settings=settings, callback=progress,
        )  # fmt: skip
        with torch.no_grad():
            left = (
                classifier(batch.images.flatten(0, 1))
                .softmax(1)
                .gather(1, seen.repeat_interleave(len(SHARES))[:, None])
            )
        for i in range(len(photos)):
            area = 100 * (batch.saliency[i] > 0.5).float().mean()
            line = [(picture(photos[i]), f"{names[int(seen[i])]}: p = {confidence[i]:.2f}")]
            line.append((overlay(photos[i], batch.saliency[i]), f"{area:.0f} % of pixels"))
            for j, share in enumerate(SHARES):
                title = f"top {100 * share:.0f} % imputed: p = {left[i * len(SHARES) + j, 0]:.2f}"
                line.append((picture(batch.images[i, j]), title))
            rows.append(line)
            labels.append(objective.upper())
        progress.advance()
    note = f"{steps} steps of {masks} masks; share: pixels of the MAP mask, map > .5; in-fill: linear imputation"
    return image_grid(rows, labels, cell=1.9, note=note)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: images, steps, masks")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of photos.png and .svg")
    args = parser.parse_args()
    style()
    with Progress("photos", total=2, unit="objectives") as progress:
        figure = photo_grid(load_classifier(CLASSIFIER), args.recipe, args.data, progress)
    inputs = {name: sha256(args.data / name) for name in args.recipe["images"]}
    made = {
        "rule": "fido_photos",
        "figure": "photos",
        "classifier": CLASSIFIER,
        "recipe": args.recipe,
        "inputs": inputs,
    }
    save_figure(figure, args.out / "photos.png", made)


if __name__ == "__main__":
    main()
