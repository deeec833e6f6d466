"""The method under test: how it is found, asked, and watched while it answers."""

import importlib
import inspect
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from common.explain import CounterfactualBatch
from comparison.conformance import problems
from comparison.conformance.problems import Problem

STRENGTHS = (0.5, 1.0, 2.0, 4.0)  # where neither the command line nor the function says any
LIMIT = 120  # seconds that one call may take
UNTARGETED = "an untargeted method asks what the seen class needs; no target can be asked for"


@dataclass(frozen=True)
class Answer:
    """What a method said to a problem, and the names of what it `touched` though it was only lent."""

    problem: Problem
    batch: CounterfactualBatch
    touched: tuple[str, ...]

    @property
    def log_p(self) -> Tensor:
        """N×S×K log-probabilities: the classifier's reading of the returned images."""
        images = self.batch.images
        with torch.no_grad():
            return self.problem.classifier(images.flatten(0, 1)).log_softmax(1).view(*images.shape[:2], -1)

    @property
    def change(self) -> Tensor:
        """N×S×C×H×W: what the method did itself, from its own reconstruction where it has one."""
        start = self.problem.images if self.batch.reference is None else self.batch.reference
        return self.batch.images - start[:, None]

    @property
    def length(self) -> Tensor:
        """‖x′ − x‖₂, N×S, from the image itself."""
        return (self.batch.images - self.problem.images[:, None]).flatten(2).norm(dim=2)


class Subject:
    """A contract function with the `strengths` it is asked for; `own` is the classifier that it explains where it
    cannot explain any other, frozen, with its `image_shape` and, where pictures of the kit mean nothing to it, images
    of its own as `examples`."""

    def __init__(self, explain: Callable, strengths: tuple[float, ...] | None, own: nn.Module | None, untargeted: bool):
        self.explain, self.own, self.untargeted = explain, own, untargeted
        default = getattr(inspect.signature(explain).parameters.get("strengths"), "default", inspect.Parameter.empty)
        self.strengths = strengths or (STRENGTHS if default is inspect.Parameter.empty else tuple(default))
        self._answers: dict[tuple[int, int, int], Answer] = {}

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """The image shapes that it is asked about, the main one first."""
        return problems.SHAPES if self.own is None else (tuple(self.own.image_shape),)

    def problem(self, shape: tuple[int, int, int] | None = None) -> Problem:
        """The ordinary question: images of one shape, by default the main one, and a trained classifier."""
        shape = shape or self.shapes[0]
        if self.own is None:
            return problems.trained(shape)
        examples = getattr(self.own, "examples", None)
        return problems.asked(self.own, problems.pictures(problems.N, shape, 1)[0] if examples is None else examples)

    def answer(self, shape: tuple[int, int, int] | None = None) -> Answer:
        """To the ordinary question, asked once."""
        shape = shape or self.shapes[0]
        if shape not in self._answers:
            self._answers[shape] = self.ask(self.problem(shape))
        return self._answers[shape]

    def ask(self, problem: Problem, callback: Callable[[dict], None] | None = None) -> Answer:
        """Call the method with copies of the images; fails the test when it takes longer than `LIMIT`."""
        lent = {name: getattr(problem, name).clone() for name in ("images", "source", "target")}
        before, training = _state(problem.classifier), problem.classifier.training
        with time_limit():
            batch = self.explain(
                **lent, classifier=problem.classifier, rng=problem.rng, strengths=self.strengths, callback=callback
            )
        if not isinstance(batch, CounterfactualBatch):
            pytest.fail(f"the method returned a {type(batch).__name__}, not a CounterfactualBatch", pytrace=False)
        touched = [name for name, value in lent.items() if not torch.equal(value, getattr(problem, name))]
        after = _state(problem.classifier)
        touched += [f"classifier.{name}" for name in before if not torch.equal(before[name], after[name])]
        touched += ["classifier.training"] if problem.classifier.training != training else []
        return Answer(problem, batch, tuple(touched))

    def require_any_classifier(self) -> None:
        """Skip a test that needs a classifier of which something is known."""
        if self.own is not None:
            pytest.skip("the method explains a classifier of its own, of which nothing is known in advance")

    def require_target(self) -> None:
        """Skip a test that asks for a class."""
        if self.untargeted:
            pytest.skip(UNTARGETED)


def find(config: pytest.Config) -> Subject:
    """The method that the command line names. Raises pytest.UsageError for a name that means nothing."""
    explain, own = imported("explainer", config), None
    if config.getoption("classifier"):
        own = imported("classifier", config)().eval().requires_grad_(False)
        if not hasattr(own, "image_shape"):
            raise pytest.UsageError(f"--classifier {config.getoption('classifier')}: give the module an `image_shape`")
    return Subject(explain, config.getoption("strengths"), own, config.getoption("untargeted"))


def imported(option: str, config: pytest.Config) -> Callable:
    """What an option names by `package.module:attribute`."""
    path = config.getoption(option)
    module, _, name = path.partition(":")
    if not name:
        raise pytest.UsageError(f"--{option} {path}: no function is named; give package.module:function")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise pytest.UsageError(f"--{option} {path}: {error}; give package.module:function, importable here") from error


@contextmanager
def time_limit() -> Iterator[None]:
    """Fail the test after `LIMIT` seconds: a method has to come to an end."""

    def stop(*_) -> None:
        pytest.fail(f"the method did not come to an end within {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _state(classifier: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in classifier.state_dict().items()}
