"""Job: train shift predictors S (contrastive spec §2.3); generator and classifiers stay as they are.

python -m papers.contrastive.train --recipes '{"face-gan": {"steps": 200}}' --seed 0 --out DIR
python -m papers.contrastive.train --recipes '{"faces": {"steps": 1500}}' --world F --seed 0 --out DIR

Files are SYSTEM-SEED.safetensors.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from common.errors import VceError, one_line_errors
from common.progress import Progress
from common.scales import parse_recipe
from common.tensors import not_a, read_tensors, write_tensors
from papers.contrastive.method import ShiftPredictor, random_conditions, shift_loss
from papers.contrastive.systems import System, load_system

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
    system: System, recipe: Recipe, seed: int, progress: Callable[[dict], None] | None = None
) -> ShiftPredictor:
    """Fit S to the latents and the asked labels of a system: Adam, one-cycle rate; same seed, same bits.

    Returns it in evaluation mode, where its dropout is off, its parameters frozen. Raises VceError when the loss stops
    being finite.
    """
    f = system.asked.at_random(torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)  # of the weights and of dropout
        S = ShiftPredictor(system.d, system.m, recipe.hidden)
        generator = torch.Generator().manual_seed(seed)
        adam = torch.optim.Adam(S.parameters(), recipe.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.learning_rate, total_steps=recipe.steps)
        for step in range(recipe.steps):
            w = system.sample(recipe.batch_size, generator)
            if recipe.neighbourhood is not None:
                w = w[:1] + recipe.neighbourhood * torch.randn(w.shape, generator=generator)
            c = random_conditions(len(w), system.m, generator, recipe.sparse)
            loss = shift_loss(S, w, c, system.G, f, recipe.lam)
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
    for module in system.modules:
        for name, tensor in sorted(module.state_dict().items()):
            sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def save_shift(S: ShiftPredictor, path: Path, facts: dict) -> None:
    """Write S atomically; `facts` are kept as JSON."""
    write_tensors(path, KIND, S.state_dict(), {"d": S.d, "m": S.m, "hidden": S.hidden, "facts": facts})


def load_shift(path: Path | str, system: System) -> tuple[ShiftPredictor, dict]:
    """S of a file of `save_shift`, in evaluation mode, frozen, and its facts. Raises VceError when the file is damaged,
    or when S was made for latents of another size than the system's, or for other labels."""
    header, state = read_tensors(path, KIND)
    try:
        S = ShiftPredictor(header["d"], header["m"], header["hidden"])
        S.load_state_dict(state, strict=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise not_a(KIND, path, "its tensors are not those of its network") from error
    made, here = (S.d, tuple(header["facts"].get("labels", ()))), (system.d, system.asked.names)
    if made != here:
        raise VceError(
            f"{path}: made for latents of size {made[0]} and the labels {', '.join(made[1]) or 'of nobody'}, not for"
            f" size {here[0]} and {', '.join(here[1])}; train it anew"
        )
    return S.eval().requires_grad_(False), header["facts"]


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=json.loads, required=True, help="JSON: fields of Recipe by system")
    parser.add_argument("--world", type=Path, help="the file of the face world, for its systems")
    parser.add_argument("--seed", type=int, required=True, help="of the weights, the latents and the conditions")
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    args = parser.parse_args()
    recipes = {name: parse_recipe(Recipe, fields) for name, fields in args.recipes.items()}
    with Progress("train the shifts", total=sum(recipe.steps for recipe in recipes.values()), unit="steps") as progress:
        for name, recipe in recipes.items():
            system = load_system(name, args.world)
            before = frozen_hash(system)
            S = train_shift(system, recipe, args.seed, lambda facts: progress.advance())
            frozen = {"before": before, "after": frozen_hash(system)}
            facts = {"recipe": asdict(recipe), "seed": args.seed, "labels": system.asked.names, "frozen": frozen}
            save_shift(S, args.out / f"{name}-{args.seed}.safetensors", facts)


if __name__ == "__main__":
    main()
