"""Job: graded and regression hypotheses for one training seed (DISC spec §2.4, claim C9): raise P(c) to p, raise a
regressor's age by Δ.

python -m papers.disc.hypotheses --entries '[{...}]' --recipes '{...}' --systems DIR --splits DIR --seed 0 --out F
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.companion import load_companion
from common.errors import VceError, one_line_errors
from common.explain import Streams
from common.progress import Progress
from common.tensors import not_a, read_tensors, write_tensors
from papers.disc.consistency import Functional, class_confidence, graded_target, regression_target
from papers.disc.layers import Layers
from papers.disc.method import Reached, fit, invert
from papers.disc.shards import Recipe, recipe_of, start_images

TOLERANCE = 0.01  # of the output; a query this near its hypothesis is done
LOADERS = {"graded": load_companion, "regression": load_checkpoint}  # of what is explained, by kind


@dataclass(frozen=True)
class Hypotheses:
    """N images under L hypotheses each: images N×L×C×H×W, what was `requested` of the output and what it was `before`
    and `after`, N×L each; `kind` one of graded, regression; error N, of the fit."""

    world: str
    kind: str
    seed: int
    ids: tuple[str, ...]
    target: Tensor
    images: Tensor
    requested: Tensor
    before: Tensor
    after: Tensor
    error: Tensor


TENSORS = ("target", "images", "requested", "before", "after", "error")


def write_hypotheses(found: list[Hypotheses], path: Path) -> None:
    """Write them as one file, atomically."""
    tensors = {f"{k}|{name}": getattr(item, name) for k, item in enumerate(found) for name in TENSORS}
    headers = [{"world": item.world, "kind": item.kind, "seed": item.seed, "ids": item.ids} for item in found]
    write_tensors(path, "hypotheses", tensors, {"entries": headers})


def read_hypotheses(path: Path) -> list[Hypotheses]:
    """Raises VceError when the file is damaged or is not one of ours."""
    header, tensors = read_tensors(path, "hypotheses")
    try:
        return [
            Hypotheses(**{**facts, "ids": tuple(facts["ids"])}, **{name: tensors[f"{k}|{name}"] for name in TENSORS})
            for k, facts in enumerate(header["entries"])
        ]
    except (KeyError, TypeError) as error:
        raise not_a("hypotheses", path, f"it lacks {error}") from error


def hypothesis(kind: str, target: Tensor, requested: Tensor) -> tuple[Functional, Callable[[Tensor], Tensor], Reached]:
    """The functional term, what is read off an output N×K, and how near M queries `rows` are to what is `requested` of
    them, M values that pass 1 − TOLERANCE when they are done."""
    if kind == "graded":
        functional, confidence = graded_target(target, requested), class_confidence(target)
    else:
        functional, confidence = regression_target(requested), lambda images, output, rows: output[:, 0]

    def read(output: Tensor, rows: Tensor) -> Tensor:
        return confidence(None, output, rows)

    return functional, read, lambda images, output, rows: 1 - (read(output, rows) - requested[rows]).abs()


def explain_hypotheses(
    entry: dict, recipe: Recipe, model: nn.Module, table: pd.DataFrame, data: Path, seed: int, callback: Callable
) -> Hypotheses:
    """One fit per image, then L searches from it at once: `levels` are probabilities of the image's target class, or
    differences to the regressor's output. `weight` is λ₃; the manifold term is off."""
    world, kind, levels = entry["world"], entry["kind"], torch.tensor(entry["levels"])
    pairs, target = start_images(entry, table, data, seed)
    rng = Streams(seed, pairs.ids, tuple(target.tolist()))
    layers, x = Layers(model, tuple(pairs.images.shape[1:])), pairs.images
    n, size = len(x), len(levels)
    with torch.no_grad():
        output = model(x)
    rows = torch.arange(n).repeat_interleave(size)
    _, read, _ = hypothesis(kind, target, torch.zeros(n))
    before = read(output, torch.arange(n))[:, None].expand(n, size)
    requested = levels.expand(n, size) if kind == "graded" else before + levels
    functional, read, near = hypothesis(kind, target[rows], requested.flatten())
    prior = recipe.prior("inr", tuple(x.shape[1:]))
    start = fit(x, prior, prior.initial(rng), layers, recipe.fit, callback=callback)
    found = invert(
        x[rows], start[rows], layers, functional, near, (1 - TOLERANCE,), schedule=recipe.schedule,
        lambdas=(recipe.semantics, 0.0, entry["weight"]), callback=callback,
    )  # fmt: skip
    images = found.images[:, 0]
    with torch.no_grad():
        after = read(model(images), torch.arange(len(rows))).view(n, size)
    images = images.view(n, size, *x.shape[1:])
    return Hypotheses(
        world, kind, seed, pairs.ids, target, images, requested.contiguous(), before.contiguous(), after, start.error
    )


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=json.loads, required=True, help="JSON list: world, kind, n, levels, weight")
    parser.add_argument("--recipes", type=json.loads, required=True, help="JSON: settings by world")
    parser.add_argument("--systems", type=Path, required=True, help="folder of NAME-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the file of hypotheses")
    args = parser.parse_args()
    found = []
    with Progress("hypotheses", total=len(args.entries), unit="kinds") as progress:
        for entry in args.entries:
            absent = {"world", "kind", "n", "levels", "weight"} - set(entry)
            if entry.get("kind") == "regression":
                absent |= {"regressor"} - set(entry)
            if absent:
                raise VceError(f"hypotheses: {', '.join(sorted(absent))} is missing in {entry}; add it to config/")
            if entry["kind"] not in LOADERS:
                known = ", ".join(LOADERS)
                raise VceError(f"hypotheses: kind {entry['kind']!r} is unknown; choose one of {known}")
            name = f"{entry.get('regressor', entry['world'])}-{args.seed}.safetensors"
            model = LOADERS[entry["kind"]](args.systems / name)
            table = pd.read_parquet(args.splits / f"{entry['world']}.parquet")
            recipe = recipe_of(args.recipes, entry["world"])
            found.append(explain_hypotheses(entry, recipe, model, table, args.data, args.seed, progress))
            progress.advance()
    write_hypotheses(found, args.out)


if __name__ == "__main__":
    main()
