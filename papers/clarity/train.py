"""Job: the ensembles of every space on top of one VAE, and the temperature of every system.

python -m papers.clarity.train --entries '{"mnist": {...}}' --vaes DIR --splits DIR --seed 0 --out DIR

All spaces see the same images: `copies` of each training image, the first as it is, the others moved by up to `shift`
pixels.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from common.classifiers.ensembles import Ensemble, Recipe, train_ensemble
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.generators.vae import VAE, load_vae, shifted
from common.progress import Progress
from papers.clarity.names import system_names
from papers.clarity.systems import LATENT, Systems, calibrated, save_systems

SIZES = (1, 2, 3, 5, 10, 20)


def augmented(images: Tensor, copies: int, shift: int, seed: int) -> Tensor:
    """copies×N×C×H×W: the images, and copies that are moved by up to `shift` pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([images, *(shifted(images, shift, generator) for _ in range(copies - 1))])


def train_space(
    space: str, recipe: Recipe, vae: VAE, copies: Tensor, labels: Tensor, n_classes: int, seed: int, progress: Progress
) -> Ensemble:
    """All members of one space, on copies×N×C×H×W images. Raises VceError naming space and member that diverged."""
    count, n = copies.shape[:2]
    flat = copies.flatten(0, 1)
    shape = tuple(flat.shape[1:])
    std = None
    if space in LATENT:
        flat, std = vae.latents(flat)
        shape = vae.latent_shape
    elif space == "pr":
        flat = vae.reconstruct(flat)
    elif space == "pr-sample":
        mean, deviation = vae.latents(flat)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            flat = torch.cat([vae.decode(z) for z in (mean + deviation * noise).split(256)])

    def inputs(rows: Tensor, generator: torch.Generator) -> Tensor:
        chosen = rows + n * torch.randint(count, rows.shape, generator=generator)
        if space != "l-sample":
            return flat[chosen]
        return flat[chosen] + std[chosen] * torch.randn(*rows.shape, flat.shape[1], generator=generator)

    ensemble = Ensemble.create(recipe.architecture, shape, n_classes, recipe.members, seed)
    try:
        train_ensemble(ensemble, inputs, labels, recipe, seed, lambda epoch: progress.advance())
    except VceError as error:
        raise VceError(f"{space}: {error} in config/") from error
    return ensemble


def train_systems(entry: dict, vae: VAE, table: pd.DataFrame, data: Path, seed: int, out: Path) -> None:
    """All spaces of one entry of `clarity.systems` on its VAE, as one file."""
    world, recipes = entry["world"], {space: Recipe(**fields) for space, fields in entry["spaces"].items()}
    spec = datasets.world(world)
    if entry.get("classes"):
        table = table[table["label"].isin(entry["classes"])]
    fit, held_out = (datasets.load(world, table, split, data) for split in ("systems", "calibration"))
    copies = augmented(fit.images, entry["copies"], entry["shift"], seed)
    ensembles = {}
    with Progress(f"train {out.stem}", total=sum(r.epochs for r in recipes.values()), unit="epochs") as progress:
        for number, (space, recipe) in enumerate(recipes.items()):
            own = 100 * seed + number
            ensembles[space] = train_space(space, recipe, vae, copies, fit.labels, len(spec.class_names), own, progress)
    names = [
        system
        for space, ensemble in ensembles.items()
        for suffix in (("", "-log") if space == "l-sample" else ("",))  # the other combination, for comparison
        for system in system_names([space], [m for m in SIZES if m <= len(ensemble)], entry["singles"], suffix)
    ]
    mean = vae.latents(fit.images)[0]
    systems = Systems(
        world=world,
        seed=seed,
        vae=vae,
        ensembles=ensembles,
        temperatures=calibrated(ensembles, world, vae, list(dict.fromkeys(names)), held_out),
        class_means=torch.stack([mean[fit.labels == k].mean(0) for k in range(len(spec.class_names))]),
    )
    save_systems(systems, out, entry)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=json.loads, required=True, help="JSON: world, spaces ... by name")
    parser.add_argument("--vaes", type=Path, required=True, help="folder of NAME-SEED.safetensors")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of NAME-SEED.safetensors")
    args = parser.parse_args()
    for name, entry in args.entries.items():
        file = f"{name}-{args.seed}.safetensors"
        vae = load_vae(args.vaes / file, datasets.world(entry["world"]).image_shape)
        table = pd.read_parquet(args.splits / f"{entry['world']}.parquet")
        train_systems(entry, vae, table, args.data, args.seed, args.out / file)


if __name__ == "__main__":
    main()
