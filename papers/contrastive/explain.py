"""The contract function of the contrastive method: a label of an image set to its opposite, all others held."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import VceError
from common.explain import CounterfactualBatch, Streams, finish
from common.files import ROOT
from papers.contrastive.edits import generated, look
from papers.contrastive.inversion import STEPS, invert
from papers.contrastive.method import ShiftPredictor, condition, counterfactual
from papers.contrastive.systems import System, load_system
from papers.contrastive.train import load_shift

SHIFT = "contrastive/shifts/face-gan-0.safetensors"


class LabelClassifier(nn.Module):
    """One label of a system as a classifier of two classes, absent and present: N×C×H×W in [0, 1] to N×2 logits. It
    knows the generator and the shift S that move the label."""

    def __init__(self, system: System, S: ShiftPredictor, label: str, image_shape: tuple[int, int, int]):
        super().__init__()
        if label not in system.asked.names:
            raise VceError(f"label {label!r}: no shift moves it; choose one of {', '.join(system.asked.names)}")
        self.system, self.S, self.k = system, S, system.asked.names.index(label)
        self.name, self.image_shape = f"contrastive/{label}", image_shape
        self.class_names = (f"not {label}", label)

    def forward(self, images: Tensor) -> Tensor:
        logit = self.system.asked.averaged(images)[:, self.k]
        return torch.stack([torch.zeros_like(logit), logit], 1)


@torch.no_grad()
def explain(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: LabelClassifier,
    rng: Streams,
    strengths: Sequence[float] = (0.5, 1.0, 1.5),
    callback: Callable[[dict], None] | None = None,
) -> CounterfactualBatch:
    """x^cf = G(w + α·S(w, c)) for every α in `strengths`, with `clamp_others`: a direct effect (spec §2.4, §2.5).

    w is found by inversion; `reference` is what it draws, and the distance to the image counts its error too. α = 1 is
    the paper's single step, other values are ours. A sample whose target is its source is skipped. Raises VceError for
    images of another shape than the classifier's, and for an α that is not positive.
    """
    shape = tuple(images.shape[1:])
    if shape != tuple(classifier.image_shape):
        raise VceError(
            f"images of shape {shape}: the generator draws {tuple(classifier.image_shape)}; convert them first"
        )
    if min(strengths) <= 0:
        raise VceError(f"strengths: α = {min(strengths):g} is no positive step")
    system, S = classifier.system, classifier.S
    w, _ = invert(images, system, rng, callback)
    reference = generated(w, system)
    present = look(reference, system).labels[:, : system.m]
    c = condition(present, classifier.k, target, "clamp_others")
    paths = torch.stack([counterfactual(w, c, S, system.G, alpha) for alpha in strengths], 1)
    batch = finish(images, paths, target, classifier=classifier, strengths=strengths)
    shift = torch.tensor(strengths)[:, None] * S(w, c)[:, None]
    same = (source == target)[:, None].numpy()
    facts = {"reference": reference, "latent_shift": shift, "status": np.where(same, "skipped", batch.status)}
    return CounterfactualBatch(**{**vars(batch), **facts, "steps": torch.full_like(batch.steps, STEPS)})


def load_shipped(name: str) -> LabelClassifier:
    """`contrastive/LABEL`: a label that this pipeline's shift moves on the packaged face GAN, trained at the best scale
    there is. Raises VceError when it has not been trained yet, and for any other classifier."""
    prefix, _, label = name.partition("/")
    if prefix != "contrastive":
        raise VceError(
            f"--classifier {name}: contrastive moves the labels that its shift was trained for; choose"
            " contrastive/smile or contrastive/male, or score classifiers of your own with `vce scores`"
        )
    files = [ROOT / "work" / scale / SHIFT for scale in ("cpu", "smoke")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        where = Path("work") / "cpu" / SHIFT
        raise VceError(f"{name}: its shift is not trained yet; run `snakemake {where}`, two minutes, first")
    system = load_system("face-gan", None)
    return LabelClassifier(system, load_shift(path, system)[0], label, tuple(system.G.image_shape))
