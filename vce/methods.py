"""The methods `vce explain` knows, one line each. Imports no torch."""

import difflib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import VceError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Method:
    """`path`: import path of its `explain`; `strengths`: from image shape C×H×W to defaults; `label`: their symbol;
    `classifier`: the one that is explained by default; `loader`: import path of what loads classifiers by name;
    `about`: what every record has to say of how the method runs here; `untargeted`: it explains the class that is seen,
    and needs no target.
    """

    path: str
    strengths: Callable[[tuple[int, int, int]], tuple[float, ...]]
    label: str
    classifier: str = "imagenet/efficientnet-lite0"
    loader: str = "common.classifiers.pretrained:load_classifier"
    about: str = ""
    untargeted: bool = False

    @property
    def own_classifier(self) -> bool:
        """Whether it explains a classifier of its own, and no other."""
        return self.loader != Method.loader

    def load(self) -> Callable:
        """The contract function of `common.explain.Explainer`."""
        return _imported(self.path)

    def load_classifier(self, name: str | None) -> "torch.nn.Module":
        """The classifier called `name`, the default one for None."""
        return _imported(self.loader)(name or self.classifier)


def _imported(path: str) -> Callable:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def svce_radii(shape: tuple[int, int, int]) -> tuple[float, ...]:
    """l1.5 radii: 50, 75, 100 at 3×224×224 as in the ImageNet figures, else those of the same mean change per value."""
    scale = (math.prod(shape) / (3 * 224 * 224)) ** (1 / 1.5)
    return tuple(float(f"{radius * scale:.3g}") for radius in (50, 75, 100))


def confidences(shape: tuple[int, int, int]) -> tuple[float, ...]:
    """Own confidences at which a search stops."""
    return (0.5, 0.9, 0.99)


def shares(shape: tuple[int, int, int]) -> tuple[float, ...]:
    """Shares of the pixels that are in-filled."""
    return (0.05, 0.1, 0.2, 0.4)


def steps(shape: tuple[int, int, int]) -> tuple[float, ...]:
    """Multiples of the shift; 1 is the paper's."""
    return (0.5, 1.0, 1.5)


METHODS = {
    "svce": Method("papers.svce.explain:explain", svce_radii, "eps"),
    "clarity": Method(
        "papers.clarity.explain:explain", confidences, "tau", "clarity/mnist", "papers.clarity.systems:load_shipped"
    ),
    "disc": Method(
        "papers.disc.explain:explain",
        confidences,
        "tau",
        about="manifold consistency is off: this classifier comes without an auxiliary that was trained with it",
    ),
    "fido": Method(
        "papers.fido.explain:explain",
        shares,
        "share",
        about="the smallest deletion of the class that is seen (SDR), in-filled by linear imputation; the target only"
        " names the class whose confidence is recorded",
        untargeted=True,
    ),
    "contrastive": Method(
        "papers.contrastive.explain:explain",
        steps,
        "alpha",
        "contrastive/smile",
        "papers.contrastive.explain:load_shipped",
        about="the image is first drawn by the packaged face GAN, as nearly as it can (reconstruction); what changes is"
        " that drawing's label, and its other labels are held",
    ),
}


def find_method(name: str, argument: str = "--method") -> Method:
    """The method called `name`, as `argument` of a command named it. Raises VceError with the known names and the
    closest match."""
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise VceError(f"{argument} {name}: unknown; {hint}Known are {', '.join(METHODS)}")
    return METHODS[name]


def check_pair(names: tuple[str, str], target: str | None, classifier: str | None) -> None:
    """Raise VceError for an unknown method, one method twice, a missing `target` where the two do not share the
    runner-up class, and a `classifier` that neither takes."""
    first, second = find_method(names[0], "METHOD_A"), find_method(names[1], "METHOD_B")
    if first is second:
        raise VceError(f"METHOD_B {names[1]}: named twice; name two different methods")
    shared = first.loader == second.loader
    if target is None and not (shared and (first.untargeted or second.untargeted)):
        why = "move an image to a class" if shared else "explain different classifiers"
        fix = "name the class that both shall move to"
        raise VceError(f"--target: missing, {names[0]} and {names[1]} {why}; {fix}")
    if classifier and not shared and first.own_classifier and second.own_classifier:
        why = f"{names[0]} and {names[1]} each explain a classifier of their own"
        raise VceError(f"--classifier {classifier}: {why}; leave it out")
