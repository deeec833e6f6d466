"""Contrastive counterfactuals: a shift in the latent space of a VAE, learned for f; strengths are multiples α of it, of
which 1 is the paper's and the others are ours.

Faces: the label of f is moved, and the other attributes are asked to stay where an annotator sees them
(`clamp_others`). Digits: the target is asked for and all other classes are asked to be absent.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from common.classifiers.architectures import digit_cnn
from common.classifiers.base import Classifier
from common.classifiers.training import Recipe as ClassifierRecipe
from common.classifiers.training import train
from common.data import datasets, faces
from common.explain import CounterfactualBatch, Explainer, Streams, finish
from common.generators.vae import VAE
from common.tensors import read_tensors, write_tensors
from comparison.bench import Bench
from papers.contrastive.labels import AgainstRest, Binary, Labels
from papers.contrastive.method import condition, counterfactual
from papers.contrastive.prior import Mixture
from papers.contrastive.systems import System
from papers.contrastive.train import Recipe, load_shift, save_shift, train_shift

KIND = "annotator"
DENSE = 10  # latents per dimension and component that a mixture is fitted to


class Classes(nn.Module):
    """Every class of a classifier against its rest: N×C×H×W images to N×K log-odds."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        log_p = self.classifier(images).log_softmax(1)
        return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))


def prepare(
    benches: list[Bench], progress: Callable[[], None], components: int, annotator_epochs: int, shift: dict
) -> None:
    """The mixture that latents are drawn from and the annotator of a face's other attributes, once for a folder; then
    one shift for each classifier."""
    first, vae = benches[0], benches[0].vae()
    if not first.file("annotator").exists():
        prior = Mixture.fit(_encoded(first, vae, DENSE * components), components, first.seed)
        parts = {f"prior/{name}": value for name, value in vars(prior).items()}
        state = _train_annotator(first, annotator_epochs).state_dict()
        parts |= {f"annotator/{name}": value for name, value in state.items()}
        write_tensors(first.file("annotator"), KIND, parts, {})
    progress()
    prior, annotator = _shared(first)
    for bench in benches:
        system = _system(bench, vae, prior, annotator)
        recipe = Recipe(**shift)
        S = train_shift(system, recipe, bench.seed)
        save_shift(S, bench.file("shift", own=True), {"recipe": vars(recipe), "labels": system.asked.names})
        progress()


def explainer(bench: Bench) -> Explainer:
    """One step per image and α; the confidence is f's, at the image that the generator draws."""
    vae = bench.vae()
    system = _system(bench, vae, *_shared(bench))
    S, _ = load_shift(bench.file("shift", own=True), system)

    @torch.no_grad()
    def run(
        images: Tensor,
        source: Tensor,
        target: Tensor,
        *,
        classifier: Classifier,
        rng: Streams,
        strengths: Sequence[float],
        callback: Callable[[dict], None] | None = None,
    ) -> CounterfactualBatch:
        w = vae.latents(images)[0]
        c = wanted(system, vae.decode(w), target)
        paths = torch.stack([counterfactual(w, c, S, vae.decode, alpha) for alpha in strengths], 1)
        batch = finish(images, paths, target, classifier=classifier, strengths=strengths)
        same = (source == target)[:, None].numpy()
        return replace(
            batch,
            reference=vae.decode(w),
            latent_shift=torch.tensor(strengths)[:, None] * S(w, c)[:, None],
            status=np.where(same, "skipped", batch.status),
        )

    return run


def wanted(system: System, drawn: Tensor, target: Tensor) -> Tensor:
    """The N×m conditions for N targets: of two classes the label of f, all others held where they are; of more, the
    target present and every other class absent."""
    if "target" in system.asked.names:
        present = (system.asked(drawn) > 0).long()
        return condition(present, 0, target, "clamp_others")
    return 2.0 * torch.nn.functional.one_hot(target, system.m) - 1


def _shared(bench: Bench) -> tuple[Mixture, nn.Module]:
    """The mixture and the annotator that all classifiers of a folder share."""
    _, parts = read_tensors(bench.file("annotator"), KIND)

    def part(name: str) -> dict[str, Tensor]:
        return {key.partition("/")[2]: value for key, value in parts.items() if key.startswith(f"{name}/")}

    annotator = _annotator(bench.world)
    annotator.load_state_dict(part("annotator"), strict=True)
    return Mixture(**part("prior")), annotator.eval().requires_grad_(False)


def _system(bench: Bench, vae: VAE, prior: Mixture, annotator: nn.Module) -> System:
    nothing = Labels((), (), ())
    attribute = datasets.world(bench.world).attribute
    if attribute is None:
        asked = Labels(
            tuple(f"class {name}" for name in bench.classifier.class_names), (Classes(bench.classifier),), ()
        )
    else:
        others = _others(attribute)
        asked = Labels(("target", *others), (AgainstRest(bench.classifier, (1,)), Binary(annotator)), ())
    return System(bench.world, vae.decode, prior.means.shape[1], asked, nothing, prior)


def _encoded(bench: Bench, vae: VAE, per_dimension: int) -> Tensor:
    """Samples of q(z|x) of the training images, so many that a full covariance is well known."""
    mean, std = vae.latents(bench.training.images)
    repeats = -(-per_dimension * mean.shape[1] // len(mean))
    noise = torch.randn(repeats, *mean.shape, generator=torch.Generator().manual_seed(bench.seed))
    return (mean + std * noise).flatten(0, 1)


def _others(attribute: str) -> tuple[str, ...]:
    return tuple(name for name in faces.ATTRIBUTES if name != attribute)


def _annotator(world: str) -> nn.Module:
    """An untrained network for the attributes of a face that are not its class; N×2×k logits, absent and present. A
    world without attributes needs none."""
    attribute = datasets.world(world).attribute
    if attribute is None:
        return nn.Sequential()
    k = len(_others(attribute))
    return nn.Sequential(digit_cnn(3, 2 * k), nn.Unflatten(1, (2, k)))


def _train_annotator(bench: Bench, epochs: int) -> nn.Module:
    attribute = datasets.world(bench.world).attribute
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(bench.seed)
        annotator = _annotator(bench.world)
    if attribute is not None:
        attributes = datasets.face_factors(bench.training.ids).attributes
        labels = attributes[:, [faces.ATTRIBUTES.index(name) for name in _others(attribute)]]
        recipe = ClassifierRecipe("", epochs, augment=True)
        train(annotator, bench.training.images, labels, recipe, bench.seed)
    return annotator.eval().requires_grad_(False)
