"""Job: the grid figure on packaged ImageNet photos with a plain (not robust) ImageNet classifier: a demonstration
without verdict, in the layout of the paper's main figure.

    python -m papers.svce.photos --recipe '{"radii": [50, 75, 100], ...}' --out figures/cpu/svce/photos.png
"""

import argparse
import json
from pathlib import Path

import torch

from common.classifiers.pretrained import load_classifier
from common.data.images import load_image
from common.errors import one_line_errors
from common.explain import Streams
from common.figures import difference_map, image_grid, picture, save_figure, style, with_maximum
from common.files import sha256
from common.progress import Progress
from papers.svce.explain import explain

CLASSIFIER = "imagenet/efficientnet-lite0"
P = 1.5


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: images, radii, iterations")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="PNG path; the SVG goes beside it")
    args = parser.parse_args()
    style()
    classifier = load_classifier(CLASSIFIER)
    names, radii = classifier.class_names, args.recipe["radii"]
    rows, labels = [], []
    with Progress("photos", total=len(args.recipe["images"]), unit="photos") as progress:
        for photo in args.recipe["images"]:
            image = load_image(args.data / photo["image"], classifier.image_shape)
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
                iterations=args.recipe["iterations"],
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
    inputs = {photo["image"]: sha256(args.data / photo["image"]) for photo in args.recipe["images"]}
    provenance = {"rule": "svce_photos", "classifier": CLASSIFIER, "p": P, "recipe": args.recipe, "inputs": inputs}
    save_figure(image_grid(rows, labels, cell=1.9), args.out, provenance)


if __name__ == "__main__":
    main()
