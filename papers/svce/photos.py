"""Job: packaged ImageNet photos with a plain (not robust) ImageNet classifier, without a verdict: the grid figure in
the layout of the paper's main figure, and the forward-only watermark test of `overlay.py`.

    python -m papers.svce.photos --recipe '{"radii": [50, 75, 100], ...}' --overlay '{"alphas": [0.5], "photos": 20}' \\
        --out figures/cpu/svce --table overlay.csv
"""

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from common.classifiers.pretrained import load_classifier
from common.data.images import load_image
from common.errors import one_line_errors
from common.explain import Streams
from common.figures import difference_map, image_grid, picture, save_figure, style, with_maximum
from common.files import atomic_path, sha256
from common.progress import Progress
from papers.svce.explain import explain
from papers.svce.overlay import overlay_test

CLASSIFIER = "imagenet/efficientnet-lite0"
P = 1.5


def photo_grid(classifier: nn.Module, recipe: dict, data: Path) -> tuple[Figure, dict]:
    """l1.5 counterfactuals of the photos of `recipe` (`images` with their `targets`, `radii`, `iterations`), and the
    figure's provenance."""
    names, radii = classifier.class_names, recipe["radii"]
    rows, labels = [], []
    with Progress("photos", total=len(recipe["images"]), unit="photos") as progress:
        for photo in recipe["images"]:
            image = load_image(data / photo["image"], classifier.image_shape)
            target = torch.tensor(photo["targets"])
            images = image.expand(len(target), -1, -1, -1)
            with torch.no_grad():
                confidence, seen = classifier(image[None]).softmax(1).max(1)
            rng = Streams(0, (photo["image"],) * len(target), tuple(photo["targets"]))
            batch = explain(
                images,
                seen.expand(len(target)),
                target,
                classifier=classifier,
                rng=rng,
                strengths=radii,
                callback=progress,
                p=P,
                iterations=recipe["iterations"],
            )
            for i, wanted in enumerate(photo["targets"]):
                line = [(picture(image), f"sees {names[int(seen)]}: {confidence.item():.2f}")]
                for j, radius in enumerate(radii):
                    line.append(
                        (picture(batch.images[i, j]), f"ε = {radius:g}: p = {batch.confidence[i, j].item():.2f}")
                    )
                    line.append(with_maximum(difference_map(batch.images[i, j], image)))
                rows.append(line)
                labels.append(f"→ {names[wanted]}")
            progress.advance()
    inputs = {photo["image"]: sha256(data / photo["image"]) for photo in recipe["images"]}
    return image_grid(rows, labels, cell=1.9), {"figure": "photos", "p": P, "recipe": recipe, "inputs": inputs}


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: images, radii, iterations")
    parser.add_argument("--overlay", type=json.loads, required=True, help="JSON: alphas, photos")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of photos and overlay, .png and .svg")
    parser.add_argument("--table", type=Path, required=True, help="what the watermark did, a row per condition")
    args = parser.parse_args()
    style()
    classifier = load_classifier(CLASSIFIER)
    table, shown, provenance = overlay_test(classifier, args.overlay, args.data)
    with atomic_path(args.table) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    figures = {"overlay": (shown, provenance), "photos": photo_grid(classifier, args.recipe, args.data)}
    for name, (figure, made) in figures.items():
        save_figure(figure, args.out / f"{name}.png", {"rule": "svce_photos", "classifier": CLASSIFIER, **made})


if __name__ == "__main__":
    main()
