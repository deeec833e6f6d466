"""Tiny real systems, trained in a second: pictures of 28×28 that four numbers describe, in ten classes."""

from types import SimpleNamespace

import pytest
import torch

from common.classifiers import ensembles
from common.data import datasets
from common.generators import vae as generators
from papers.clarity.systems import Systems
from papers.clarity.train import train_space

LATENT, MEMBERS = 4, 3
ARCHITECTURES = {
    "p": "mlp",
    "pr": "mlp",
    "l-mean": "mlp",
    "l-sample": "mlp",
    "schut": "schut_mlp",
    "pr-sample": "mlp",
}
TEMPERATURES = {
    **{f"{space}.{k}": 0.7 + 0.1 * k for space in ARCHITECTURES for k in range(MEMBERS)},
    **{f"{space}-m{m}": 0.9 for space in ARCHITECTURES for m in (2, MEMBERS)},
    "l-sample-m3-log": 1.3,
}


def pictures(n: int, seed: int) -> datasets.Images:
    """Smooth grey pictures of ten classes, each a cluster of the four numbers behind a picture."""
    draw, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    basis = torch.nn.functional.interpolate(torch.randn(LATENT, 1, 4, 4, generator=fixed), size=28, mode="bilinear")
    centres = torch.randn(10, LATENT, generator=fixed)
    labels = torch.arange(n) % 10
    factors = centres[labels] + 0.3 * torch.randn(n, LATENT, generator=draw)
    images = (1.5 * torch.einsum("nk,kchw->nchw", factors, basis)).sigmoid()
    return datasets.Images(images, labels, tuple(f"{seed}-{k}" for k in range(n)))


@pytest.fixture(scope="session")
def digits() -> datasets.Images:
    """Sixteen pictures that nothing was trained on."""
    return pictures(16, 1)


@pytest.fixture(scope="session")
def systems() -> Systems:
    """Three members of every space on one VAE."""
    fit = pictures(500, 0)
    vae = generators.train_vae(
        fit.images, generators.Recipe("mlp", LATENT, 12, (48,), beta=8.0, batch_size=50, learning_rate=3e-3), 0
    )
    trained = {}
    for seed, (space, architecture) in enumerate(ARCHITECTURES.items()):
        recipe = ensembles.Recipe(architecture, MEMBERS, 8, batch_size=50, learning_rate=2e-3)
        progress = SimpleNamespace(advance=lambda: None)
        trained[space] = train_space(space, recipe, vae, fit.images[None], fit.labels, 10, seed, progress)
    mean = vae.latents(fit.images)[0]
    means = torch.stack([mean[fit.labels == label].mean(0) for label in range(10)])
    return Systems("mnist", 0, vae, trained, TEMPERATURES, means)
