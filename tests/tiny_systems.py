"""Systems that Clarity and the contrastive method can explain, trained in seconds on the conformance kit's pictures."""

import functools

import torch
from torch import Tensor, nn

from common.classifiers import ensembles
from common.generators import vae as generators
from common.generators.vae import VAE
from comparison.conformance.problems import CLASSES, N, pictures, trained
from papers.clarity.systems import System as LatentSystem
from papers.clarity.train import train_space
from papers.contrastive.explain import LabelClassifier
from papers.contrastive.labels import AgainstRest, Labels
from papers.contrastive.systems import System
from papers.contrastive.train import Recipe, train_shift

SHAPE, LATENT = (1, 28, 28), 4


class NoProgress:
    def advance(self):
        pass


class Decoder(nn.Module):
    """A generator without an encoder: its latents are found by optimisation."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z)


@functools.cache
def autoencoder() -> VAE:
    recipe = generators.Recipe("mlp", LATENT, 20, (64,), beta=2.0, batch_size=50, learning_rate=3e-3)
    return generators.train_vae(pictures(600, SHAPE, 0)[0], recipe, 0)


def clarity(space: str = "l-sample") -> LatentSystem:
    """Three members on the latents of the pictures: Clarity as this repository reads it."""
    images, labels = pictures(600, SHAPE, 0)
    recipe = ensembles.Recipe("mlp", 3, 12, batch_size=50, learning_rate=2e-3)
    ensemble = train_space(space, recipe, autoencoder(), images[None], labels, CLASSES, 0, NoProgress())
    return LatentSystem(f"{space}-m3", space, "mnist", autoencoder(), ensemble)


def clarity_of_images() -> LatentSystem:
    """Three members on the pictures themselves, explained through the decoder."""
    return clarity("p")


def contrastive() -> LabelClassifier:
    """Whether the spots are low, in pictures that a decoder draws."""
    network = trained(SHAPE).classifier
    asked = Labels(("high", "low"), (AgainstRest(network, (0,)), AgainstRest(network, (2,))), ())
    system = System("pictures", Decoder(autoencoder()), LATENT, asked, Labels((), (), ()))
    S = train_shift(system, Recipe(300, hidden=64, learning_rate=5e-3, sparse=True), 0)
    classifier = LabelClassifier(system, S, "low", SHAPE)
    with torch.no_grad():
        classifier.examples = system.G(autoencoder().latents(pictures(N, SHAPE, 1)[0])[0])
    return classifier
