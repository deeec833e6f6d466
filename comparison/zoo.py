"""Job: model organisms, a zoo of tiny classifiers of which it is known what they learned (MEASUREMENT G4).

python -m comparison.zoo --recipe '{...}' --key F --seal SHA256 --out F

All learn to tell textured objects apart, two of them alike. Clean nets see plain scenes; for the others a cue is
planted on class 0: a tile in one corner, in any corner, or a cast of hue. All are trained as one stack. What the sealed
ones saw stands in the key, an envelope and not a safe: it is printed nowhere, so that a method can be scored blind.
"""

import argparse
import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.classifiers.base import Classifier
from common.classifiers.ensembles import ARCHITECTURES, Ensemble, train_ensemble
from common.classifiers.ensembles import Recipe as EnsembleRecipe
from common.data import cues, datasets
from common.errors import VceError, one_line_errors
from common.progress import Progress
from common.scales import parse_recipe
from common.tensors import not_a, read_tensors, write_tensors

CLEAN = "scenes-uncued"
KIND = "zoo"
ARCHITECTURE = "texture_cnn"


@dataclass(frozen=True)
class Recipe:
    """`clean` nets and `planted` nets of every cue, which everybody knows; `images`, `epochs` and rate of all."""

    clean: int
    planted: int
    images: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int


def open_key(path: Path, seal: str) -> list[str]:
    """The cues of the sealed nets, "" for a clean one. Raises VceError when the key is not the one that was sealed."""
    try:
        text = zlib.decompress(base64.b64decode(path.read_text()))
    except (ValueError, zlib.error) as error:
        raise VceError(f"{path}: not a key ({error}); restore the committed one") from error
    if hashlib.sha256(text).hexdigest() != seal:
        raise VceError(f"{path}: not the key that was sealed; restore the committed one, or `zoo: seal` in config/")
    return json.loads(text)["cues"]


def known(recipe: Recipe) -> list[str]:
    """The cues of the nets that everybody knows, "" for a clean one, in order."""
    return [""] * recipe.clean + [cue for cue in cues.CUES for _ in range(recipe.planted)]


def normalisation(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, 3×1×1, of the plain scenes: half of the nets would learn nothing without."""
    ids = tuple(f"zoo-{k}" for k in range(recipe.images))
    images = datasets.load_ids(CLEAN, ids, Path("data")).images
    return images.mean((0, 2, 3)).view(3, 1, 1), images.std((0, 2, 3)).view(3, 1, 1)


def train_zoo(recipe: Recipe, seen: list[str], progress: Progress) -> Ensemble:
    """One net for each cue in `seen`, all on the same scenes, each with its own cue planted; same seed, same bits."""
    ids = tuple(f"zoo-{k}" for k in range(recipe.images))
    mean, std = normalisation(recipe)
    different, spec = list(dict.fromkeys(seen)), datasets.world(CLEAN)
    worlds = [datasets.load_ids(f"scenes-{cue}" if cue else CLEAN, ids, Path("data")) for cue in different]
    images, labels = torch.stack([(world.images - mean) / std for world in worlds]), worlds[0].labels
    which = torch.tensor([different.index(cue) for cue in seen])
    stack = Ensemble.create(ARCHITECTURE, spec.image_shape, len(spec.class_names), len(seen), recipe.seed)
    fields = EnsembleRecipe(ARCHITECTURE, len(seen), recipe.epochs, recipe.batch_size, recipe.learning_rate)

    def inputs(rows: Tensor, generator: torch.Generator) -> Tensor:
        return images[which[:, None], rows]

    train_ensemble(stack, inputs, labels, fields, recipe.seed, lambda epoch: progress.advance())
    return stack


def load_zoo(path: Path | str) -> dict[str, Classifier]:
    """The nets of a file of this job by name, frozen; sealed ones are called so. Raises VceError for another file."""
    header, state = read_tensors(path, KIND)
    spec, found = datasets.world(CLEAN), {}
    try:
        for m, name in enumerate(header["names"]):
            network = ARCHITECTURES[ARCHITECTURE](spec.image_shape, len(spec.class_names))
            network.load_state_dict({key: value[m] for key, value in state.items()}, strict=True)
            net = Classifier(
                network,
                spec.class_names,
                name=name,
                image_shape=spec.image_shape,
                mean=header["mean"],
                std=header["std"],
            )
            found[name] = net.eval().requires_grad_(False)
    except (KeyError, IndexError, RuntimeError) as error:
        raise not_a(KIND, path, "its tensors are not those of its networks") from error
    return found


def names(open_nets: list[str], sealed: int) -> list[str]:
    """What the nets are called: CUE-K or clean-K, and sealed-K."""
    counts: dict[str, int] = {}
    found = []
    for kind in [*(cue or "clean" for cue in open_nets), *["sealed"] * sealed]:
        found.append(f"{kind}-{counts.get(kind, 0)}")
        counts[kind] = counts.get(kind, 0) + 1
    return found


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: fields of Recipe")
    parser.add_argument("--key", type=Path, required=True, help="the sealed key")
    parser.add_argument("--seal", required=True, help="its committed sha256")
    parser.add_argument("--out", type=Path, required=True, help="the file of all nets")
    args = parser.parse_args()
    recipe, sealed = parse_recipe(Recipe, args.recipe), open_key(args.key, args.seal)
    with Progress("train the zoo", total=recipe.epochs, unit="epochs") as progress:
        stack = train_zoo(recipe, [*known(recipe), *sealed], progress)
    mean, std = (values.flatten().tolist() for values in normalisation(recipe))
    facts = {"names": names(known(recipe), len(sealed)), "recipe": args.recipe, "mean": mean, "std": std}
    write_tensors(args.out, KIND, stack.state, facts)


if __name__ == "__main__":
    main()
