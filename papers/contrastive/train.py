"""Job: train a shift predictor S (contrastive spec §2.3); generator and classifiers stay as they are.

python -m papers.contrastive.train --recipe '{"steps": 200}' --seed 0 --out F
"""

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from common.errors import VceError, one_line_errors
from common.progress import Progress
from common.scales import parse_recipe
from common.tensors import not_a, read_tensors, write_tensors
from papers.contrastive.method import Generator, LabelLogits, ShiftPredictor, random_conditions, shift_loss
from papers.contrastive.systems import System, packaged_faces

KIND = "shift predictor"


@dataclass(frozen=True)
class Recipe:
    """How S is trained. `lam` is λ, in units of the latent space. A batch is `batch_size` different latents or, with a
    `neighbourhood`, one latent with that much normal noise, as released. `sparse`: how conditions are drawn."""

    steps: int
    batch_size: int = 32
    lam: float = 0.05
    hidden: int = 512
    learning_rate: float = 1e-3
    neighbourhood: float | None = None
    sparse: bool = False


def train_shift(
    G: Generator,
    f: LabelLogits,
    d: int,
    m: int,
    recipe: Recipe,
    seed: int,
    progress: Callable[[dict], None] | None = None,
) -> ShiftPredictor:
    """Fit S for standard normal latents of size d and m labels: Adam, one-cycle rate; same seed, same bits.

    Returns it in evaluation mode, where its dropout is off, its parameters frozen. Raises VceError when the loss stops
    being finite.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)  # of the weights and of dropout
        S = ShiftPredictor(d, m, recipe.hidden)
        generator = torch.Generator().manual_seed(seed)
        adam = torch.optim.Adam(S.parameters(), recipe.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.learning_rate, total_steps=recipe.steps)
        for step in range(recipe.steps):
            w = torch.randn(recipe.batch_size, d, generator=generator)
            if recipe.neighbourhood is not None:
                w = w[:1] + recipe.neighbourhood * w
            c = random_conditions(len(w), m, generator, recipe.sparse)
            loss = shift_loss(S, w, c, G, f, recipe.lam)
            adam.zero_grad()
            loss.backward(inputs=list(S.parameters()))  # nothing gathers in G and f
            adam.step()
            schedule.step()
            if not math.isfinite(loss.item()):
                raise VceError(f"training diverged in step {step + 1}: the loss is not finite; lower `learning_rate`")
            if progress:
                progress({"step": step + 1, "steps": recipe.steps, "loss": loss.item()})
    return S.eval().requires_grad_(False)


def frozen_hash(system: System) -> str:
    """sha256 over all parameters and buffers of the generator and of the classifiers: the same before and after."""
    sha = hashlib.sha256()
    for module in (system.G, *(classifier for classifier, _ in system.labels.classifiers)):
        if isinstance(module, nn.Module):
            for name, tensor in sorted(module.state_dict().items()):
                sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def save_shift(S: ShiftPredictor, path: Path, facts: dict) -> None:
    """Write S atomically; `facts` are kept as JSON."""
    write_tensors(path, KIND, S.state_dict(), {"d": S.d, "m": S.m, "hidden": S.hidden, "facts": facts})


def load_shift(path: Path | str, d: int, m: int) -> ShiftPredictor:
    """S of a file of `save_shift`, in evaluation mode, frozen. Raises VceError when the file is damaged, or when S was
    made for latents of another size than `d` or for another number of labels than `m`."""
    header, state = read_tensors(path, KIND)
    try:
        S = ShiftPredictor(header["d"], header["m"], header["hidden"])
        S.load_state_dict(state, strict=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise not_a(KIND, path, "its tensors are not those of its network") from error
    if (S.d, S.m) != (d, m):
        raise VceError(f"{path}: made for latents of size {S.d} and {S.m} labels, not {d} and {m}; train it anew")
    return S.eval().requires_grad_(False)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: fields of Recipe")
    parser.add_argument("--seed", type=int, required=True, help="of the weights, the latents and the conditions")
    parser.add_argument("--out", type=Path, required=True, help="the file of S")
    args = parser.parse_args()
    recipe, system = parse_recipe(Recipe, args.recipe), packaged_faces()
    before = frozen_hash(system)
    f = system.asked.at_random(torch.Generator().manual_seed(args.seed))
    with Progress("train the shift", total=recipe.steps, unit="steps") as progress:
        S = train_shift(system.G, f, system.d, system.m, recipe, args.seed, lambda facts: progress.advance())
    facts = {"recipe": asdict(recipe), "seed": args.seed, "labels": system.asked.names, "frozen": before}
    if frozen_hash(system) != before:
        raise VceError("generator or classifiers changed while the shift was trained; freeze them")
    save_shift(S, args.out, facts)


if __name__ == "__main__":
    main()
