"""Job: do finished counterfactuals survive corruptions that nobody prepared for (DISC spec §6.2 R-b, claim C6)?

python -m papers.disc.corruptions --shards F... --companions DIR --out F.parquet

Each counterfactual is corrupted and shown to the classifier again; the rows say whether it still sees the target. Not
CIFAR-C bit for bit: blur mirrors at the border, and brightness is added to every channel, not to HSV's value.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from common.batches import Shard, read_shards
from common.classifiers.companion import load_companion
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import Streams, finish
from common.files import atomic_path
from common.measure import by_strength
from common.progress import Progress

CORRUPTIONS = {  # the parameter at severities 1, 3 and 5
    "noise": {1: 0.04, 3: 0.08, 5: 0.10},  # σ
    "blur": {1: 0.4, 3: 0.7, 5: 1.0},  # σ in pixels
    "contrast": {1: 0.75, 3: 0.4, 5: 0.15},  # factor
    "brightness": {1: 0.05, 3: 0.15, 5: 0.3},  # what is added
    "jpeg": {1: 80, 3: 58, 5: 40},  # quality
}
ANCHORS = ("random", "class-mean", "nearest-real")  # make no claim that they are counterfactuals


def corrupted(images: Tensor, name: str, severity: int, rng: Streams) -> Tensor:
    """N×C×H×W images in [0, 1], corrupted and clipped to [0, 1], for `name` and `severity` of `CORRUPTIONS`.

    Noise is drawn from `rng`, a stream per image and severity, so it does not depend on the batch; contrast shrinks
    around each image's own mean per channel; JPEG reads one or three channels, and blur images of more than 4 pixels.
    Raises VceError for an unknown corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise VceError(f"corruption {name!r} is unknown; choose one of {', '.join(CORRUPTIONS)}")
    if severity not in CORRUPTIONS[name]:
        raise VceError(
            f"severity {severity} of {name} is unknown; choose one of {', '.join(map(str, CORRUPTIONS[name]))}"
        )
    from torchvision.transforms.v2 import functional as T  # two seconds of imports for jobs that corrupt nothing

    parameter = CORRUPTIONS[name][severity]
    match name:
        case "noise":
            changed = images + parameter * rng.normal(images.shape[1:], f"corruption.{severity}")
        case "blur":
            kernel = 2 * int(4 * parameter + 0.5) + 1  # as far as 4σ
            changed = T.gaussian_blur(images, [kernel, kernel], [parameter, parameter])
        case "contrast":
            mean = images.mean((2, 3), keepdim=True)
            changed = mean + parameter * (images - mean)
        case "brightness":
            changed = images + parameter
        case "jpeg":
            changed = T.jpeg((255 * images).round().to(torch.uint8), parameter).float() / 255
    return changed.clamp(0, 1)


@torch.no_grad()
def predictions(classifier: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Class index N that `classifier` sees in N×C×H×W images."""
    return torch.cat([classifier(x).argmax(1) for x in images.split(batch_size)])


def survival(classifier: nn.Module, x: Tensor, target: Tensor, rng: Streams) -> dict[tuple[str, int], Tensor]:
    """N values by (corruption, severity): 1 where `classifier` sees its `target` in the corrupted image, else 0."""
    return {
        (name, severity): (predictions(classifier, corrupted(x, name, severity, rng)) == target).float()
        for name, severities in CORRUPTIONS.items()
        for severity in severities
    }


def survival_rows(shard: Shard, classifier: nn.Module, originals: Tensor) -> pd.DataFrame:
    """One row per method, strength, image, corruption and severity: `survives`, 0 or 1, with `confidence` and `status`
    before the corruption.

    The method `real` is the N×C×H×W `originals` held against their own labels, what real images survive; `twin` enters
    with its full change alone, the upper bound. Noise is left out where DEP, which was trained on it, took part.
    """
    real = finish(originals, originals[:, None], shard.source, classifier=classifier, strengths=(0.0,))
    frames, images, targets = [], [], []
    for method, batch in {"real": real, **shard.batches}.items():
        if method in (*ANCHORS, "identity"):
            continue
        kept = slice(-1 if method == "twin" else 0, None)
        strengths = batch.strengths[kept]
        frames.append(
            pd.DataFrame(
                {
                    "world": shard.world,
                    "starts": shard.starts,
                    "seed": shard.seed,
                    "method": method,
                    "strength": np.repeat(np.array(strengths, dtype=float), len(shard.ids)),
                    "image": np.tile(np.array(shard.ids, dtype=object), len(strengths)),
                    "confidence": by_strength(batch.confidence[:, kept]).numpy(),
                    "status": batch.status[:, kept].T.ravel(),
                }
            )
        )
        images.append(by_strength(batch.images[:, kept]))
        targets.append((shard.source if method == "real" else shard.target).repeat(len(strengths)))
    facts, target = pd.concat(frames, ignore_index=True), torch.cat(targets)
    rng = Streams(shard.seed, tuple(facts["image"]), tuple(target.tolist()))
    rows = pd.concat(
        [
            facts.assign(corruption=name, severity=severity, survives=survives.numpy())
            for (name, severity), survives in survival(classifier, torch.cat(images), target, rng).items()
        ],
        ignore_index=True,
    )
    prepared = rows["method"].str.contains("+dep", regex=False) & (rows["corruption"] == "noise")
    return rows[~prepared].reset_index(drop=True)


def read_from(paths: Sequence[Path], starts: Sequence[str]) -> list[Shard]:
    """The shards in some files whose starts are among `starts`. Raises VceError when there is none, or one twice."""
    shards = [shard for path in paths for shard in read_shards(path) if shard.starts in starts]
    if not shards:
        raise VceError(f"--shards: none starts from {' or '.join(starts)}; give the files of those that do")
    keys = [(shard.world, shard.starts, shard.seed) for shard in shards]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise VceError(f"--shards: {' '.join(map(str, twice))} is given twice; give each shard once")
    return shards


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="those of pairs and screening are read")
    parser.add_argument("--companions", type=Path, required=True, help="folder of WORLD-SEED.safetensors")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="table of all rows, .parquet")
    args = parser.parse_args()
    shards, rows = read_from(args.shards, ("pairs", "screening")), []
    with Progress("corruptions", total=len(shards), unit="shards") as progress:
        for shard in shards:
            companion = load_companion(args.companions / f"{shard.world}-{shard.seed}.safetensors")
            originals = datasets.load_ids(shard.world, shard.ids, args.data).images
            rows.append(survival_rows(shard, companion, originals))
            progress.advance()
    with atomic_path(args.out) as temporary:
        pd.concat(rows, ignore_index=True).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
