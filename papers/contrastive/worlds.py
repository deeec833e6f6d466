"""Job: the face world of one training seed: a VAE with a mixture as its prior, the explained classifiers, the auditor,
and a reader of nuisances.

python -m papers.contrastive.worlds --recipe '{"faces": 10000, ...}' --seed 0 --out F

The generator draws faces of the structural model. The explained classifiers learn from other faces, whose attributes
are independent and whose noise is doubled; the matched ones from faces like the generator's.
"""

import argparse
import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.classifiers.training import Recipe as ClassifierRecipe
from common.classifiers.training import train
from common.data.faces import Factors, render
from common.errors import one_line_errors
from common.generators.vae import Recipe as VaeRecipe
from common.generators.vae import train_vae
from common.progress import Progress
from common.scales import parse_recipe
from papers.contrastive import faces
from papers.contrastive.prior import Mixture
from papers.contrastive.systems import NETWORKS, FaceWorld, network, nuisance_reader, save_world

CONFOUNDED, BALANCED = 0.95, 0.5  # of the training faces, a mustache sits where the smile says
HELD = 2000  # held-out faces
LOST = 0.1  # accuracy that reconstructions may cost a classifier
AUDITOR_SEED = 1000  # shared with no explained classifier


@dataclass(frozen=True)
class Recipe:
    """`faces` and `vae`: what the generator learns from and how; `components` of its prior; `images` and `epochs` of
    every classifier, `audit_epochs` of the auditor, which has another architecture."""

    faces: int
    vae: dict
    components: int
    images: int
    epochs: int
    audit_epochs: int


def training_faces(name: str, seed: int, n: int) -> tuple[Tensor, Tensor]:
    """n images and their N×k labels for the network called `name`. Those of decisions share the annotator's faces;
    nothing else shares any."""
    matched = name.startswith("matched")
    group = "audit" if name == "auditor" else "matched" if matched else "independent"
    share = {"confounded": CONFOUNDED, "balanced": BALANCED}.get(name)
    images, attributes = rendered(f"{group}-{seed}", n, share, not matched)
    if share is not None:
        return images, attributes[:, 3:4]
    return images, faces.decided(attributes) if name.endswith("rules") else attributes


@functools.lru_cache(maxsize=2)
def rendered(group: str, n: int, mustached_smiles: float | None, independent: bool) -> tuple[Tensor, Tensor]:
    """Images and attributes of `faces.draw`; the last sets are kept, since an annotator and its decisions share one."""
    drawn = faces.draw(group, n, mustached_smiles, independent)
    return render(drawn), faces.present(drawn)


def train_network(name: str, recipe: Recipe, seed: int) -> nn.Module:
    """One classifier of the world, its augmentation noise and blur: reconstructions are blurred."""
    seed = seed + AUDITOR_SEED if name == "auditor" else seed
    images, labels = training_faces(name, seed, recipe.images)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = network(name)
    epochs = recipe.audit_epochs if name == "auditor" else recipe.epochs
    train(model, images, labels, ClassifierRecipe("", epochs, augment=True), seed)
    return model.eval().requires_grad_(False)


def nuisance_values(factors: Factors) -> Tensor:
    """N×4: where a face is, its size and its skin."""
    return torch.cat([factors.centre, factors.scale[:, None], factors.skin.mean(1, keepdim=True)], 1)


def fit_nuisances(seed: int, n: int) -> nn.Module:
    """A ridge regression on n faces, to standard deviations of each nuisance."""
    from sklearn.linear_model import Ridge

    drawn = faces.draw(f"nuisance-{seed}", n, independent=True)
    values = nuisance_values(drawn)
    model = Ridge(alpha=1.0).fit(render(drawn).flatten(1).numpy(), ((values - values.mean(0)) / values.std(0)).numpy())
    reader = nuisance_reader()
    reader[1].load_state_dict({"weight": torch.tensor(model.coef_), "bias": torch.tensor(model.intercept_)})
    return reader.requires_grad_(False)


@torch.no_grad()
def gate(world: FaceWorld, seed: int) -> dict[str, dict]:
    """Of each classifier: its accuracy, the mean over its labels, on held-out faces of the structural model and on
    their reconstructions; `adequate` where these cost it no more than `LOST`. Of nuisances the least squared
    correlation stands in the place of an accuracy."""
    held = faces.draw(f"held-{seed}", HELD)
    images, attributes = render(held), faces.present(held)
    drawn = world.vae.reconstruct(images)
    found = {
        "nuisances": {"accuracy": _explained(world, held, images), "reconstructed": _explained(world, held, drawn)}
    }
    for name in NETWORKS:
        truth = faces.decided(attributes) if name.endswith("rules") else attributes
        truth = attributes[:, 3:4] if name in ("confounded", "balanced") else truth
        real, rebuilt = (
            float(torch.cat([world.networks[name](x).argmax(1) for x in some.split(256)]).eq(truth).float().mean())
            for some in (images, drawn)
        )
        found[name] = {"accuracy": real, "reconstructed": rebuilt, "adequate": real - rebuilt <= LOST}
    return found


def _explained(world: FaceWorld, held: Factors, images: Tensor) -> float:
    """The least squared correlation of a nuisance with what is read of it."""
    truth, seen = nuisance_values(held), world.nuisances(images)
    return float(min(torch.corrcoef(torch.stack(pair))[0, 1] ** 2 for pair in zip(truth.T, seen.T, strict=True)))


def train_world(recipe: Recipe, seed: int, progress: Progress) -> FaceWorld:
    """Generator, prior and all classifiers; same seed, same bits."""
    images = render(faces.draw(f"generator-{seed}", recipe.faces))
    vae = train_vae(images, parse_recipe(VaeRecipe, recipe.vae), seed, lambda epoch: progress.advance())
    prior = Mixture.fit(vae.latents(images)[0], recipe.components, seed)
    networks = {}
    for name in NETWORKS:
        networks[name] = train_network(name, recipe, seed)
        progress.advance()
    return FaceWorld(vae, prior, networks, fit_nuisances(seed, recipe.images))


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=json.loads, required=True, help="JSON: fields of Recipe")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the file of the world")
    args = parser.parse_args()
    recipe = parse_recipe(Recipe, args.recipe)
    steps = recipe.vae["epochs"] + len(NETWORKS)
    with Progress("train the face world", total=steps, unit="parts") as progress:
        world = train_world(recipe, args.seed, progress)
    save_world(world, args.out, {"recipe": asdict(recipe), "seed": args.seed, "gate": gate(world, args.seed)})


if __name__ == "__main__":
    main()
