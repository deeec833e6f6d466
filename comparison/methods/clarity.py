"""Clarity: ascent in the latent space of a VAE, by an ensemble of latent classifiers; strengths are own confidences.

It explains its own classifier, which learned the same labels as f: what that has to do with f is a question of the
tables. The variant that is `distilled` learned what f answers to decoded latents, and f reads its confidence.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from common.classifiers.ensembles import Ensemble, Recipe, train_ensemble
from common.classifiers.training import accuracy
from common.explain import CounterfactualBatch, Explainer, Streams, finish
from common.generators.vae import VAE
from comparison.bench import Bench, answers
from papers.clarity.explain import explain
from papers.clarity.systems import System, Systems, calibrated, load_systems, save_systems

SPACE = "l-sample"  # Clarity's own reading: members learn from fresh samples of q(z|x)


def prepare(
    benches: list[Bench],
    progress: Callable[[], None],
    members: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    between: int,
) -> None:
    """One ensemble for a folder learns the labels of the training images from samples of q(z|x). One for each
    classifier learns what that answers to `between` decoded latents on the way from one image to another: of training
    images alone it would learn the labels again."""
    first, vae = benches[0], benches[0].vae()
    recipe = Recipe("mlp", members, epochs, batch_size, learning_rate)
    mean, std = vae.latents(first.training.images)

    def fresh(rows: Tensor, generator: torch.Generator) -> Tensor:
        return mean[rows] + std[rows] * torch.randn(*rows.shape, mean.shape[1], generator=generator)

    if not first.file("clarity").exists():
        _teach(first, vae, recipe, fresh, first.training.labels, first.calibration.labels, own=False)
    progress()
    z = mixed(mean, between, first.seed)
    with torch.no_grad():
        decoded = torch.cat([vae.decode(part) for part in z.split(256)])
    for bench in benches:
        learned, held = (answers(bench.classifier, images) for images in (decoded, bench.calibration.images))
        _teach(bench, vae, recipe, lambda rows, generator: z[rows], learned, held, own=True)
        progress()


@torch.no_grad()
def mixed(latents: Tensor, n: int, seed: int) -> Tensor:
    """n latents, each somewhere between two of the N×d `latents`, drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(len(latents), (2, n), generator=generator)
    return torch.lerp(latents[a], latents[b], torch.rand(n, 1, generator=generator))


def explainer(bench: Bench, distilled: bool = False) -> Explainer:
    """Confidence and status are those of the latent classifier or, `distilled`, of f."""
    system = _system(bench, distilled)

    def run(
        images: Tensor,
        source: Tensor,
        target: Tensor,
        *,
        classifier: nn.Module,
        rng: Streams,
        strengths: Sequence[float],
        callback: Callable[[dict], None] | None = None,
    ) -> CounterfactualBatch:
        batch = explain(images, source, target, classifier=system, strengths=strengths, callback=callback)
        return read_by(batch, images, target, classifier) if distilled else batch

    return run


def read_by(batch: CounterfactualBatch, images: Tensor, target: Tensor, classifier: nn.Module) -> CounterfactualBatch:
    """The same images with the confidence and the status that another classifier gives them; what was skipped or
    diverged stays so."""
    read = finish(images, batch.images, target, classifier=classifier, strengths=batch.strengths)
    kept = np.isin(batch.status, ("skipped", "diverged"))
    return replace(batch, log_confidence=read.log_confidence, status=np.where(kept, batch.status, read.status))


def facts(bench: Bench, images: Tensor, distilled: bool = False) -> dict[str, float]:
    """In how many of N images the latent classifier and f see the same class."""
    return {"agreement": accuracy(_system(bench, distilled), images, answers(bench.classifier, images))}


def _system(bench: Bench, distilled: bool) -> System:
    systems = load_systems(bench.file("clarity", own=distilled))
    return systems.system(*systems.temperatures)


def _teach(
    bench: Bench,
    vae: VAE,
    recipe: Recipe,
    inputs: Callable[[Tensor, torch.Generator], Tensor],
    labels: Tensor,
    held: Tensor,
    own: bool,
) -> None:
    """Train and calibrate an ensemble, and write it; `held` are the answers to the calibration images."""
    shape, n_classes = vae.latents(bench.training.images[:1])[0].shape[1:], len(bench.classifier.class_names)
    ensemble = Ensemble.create(recipe.architecture, tuple(shape), n_classes, recipe.members, bench.seed)
    train_ensemble(ensemble, inputs, labels, recipe, bench.seed)
    calibration, name = replace(bench.calibration, labels=held), f"{SPACE}-m{recipe.members}"
    temperatures = calibrated({SPACE: ensemble}, bench.world, vae, [name], calibration)
    mean = vae.latents(bench.training.images)[0]
    means = torch.stack([mean[bench.training.labels == k].mean(0) for k in range(n_classes)])
    systems = Systems(bench.world, bench.seed, vae, {SPACE: ensemble}, temperatures, means)
    save_systems(systems, bench.file("clarity", own), vars(recipe))
