"""The conformance kit on our own methods, with their exceptions, and on methods that are broken on purpose."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_systems  # noqa: F401  (it and the next are loaded once for all runs)
import torch
import toy_explainers  # noqa: F401

from common.explain import Streams
from comparison.conformance import problems, subject, test_kit
from comparison.conformance.problems import Problem
from papers.disc.explain import explain as disc

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
TESTS = {name for name in vars(test_kit) if name.startswith("test_")}


@pytest.fixture(scope="module", autouse=True)
def all_of_torch():
    """An optimiser's first step imports parts of torch that cannot be imported twice: here, before `pytester`."""
    problems.trained()


@pytest.fixture
def launch(pytester, monkeypatch):
    """`pytest ARGUMENTS` in the repository's root, in this process."""
    monkeypatch.chdir(ROOT)
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


@pytest.fixture
def kit(launch):
    """`pytest ARGUMENTS`: the kit's tests by outcome, and what was printed."""

    def run(*arguments):
        result = launch(*arguments)
        outcomes = {"passed": set(), "failed": set(), "skipped": set()}
        for report in result.reprec.getreports("pytest_runtest_logreport"):
            if report.when == "call" or report.outcome != "passed":
                outcomes[report.outcome].add(report.nodeid.rpartition("::")[2].partition("[")[0])
        return outcomes, result.stdout.str()

    return run


# our own methods

NO_TARGET = {"test_linear", "test_way_back", "test_already_there"}
OWN_CLASSIFIER = {"test_linear", "test_constant", "test_irrelevant", "test_randomised"}
CLARITY = ("papers.clarity.explain:explain", "--classifier")


@pytest.mark.parametrize(
    ("arguments", "failed", "skipped"),
    [
        # both maximise p(target) in a ball, whatever the source is: their callers leave such pairs out
        (["papers.svce.explain:explain"], {"test_already_there"}, set()),
        (["common.anchors:pixel_ascent"], {"test_already_there"}, set()),
        # `backward` reaches the weights; all classifiers of this repository are frozen
        (["papers.fido.explain:explain", "--untargeted"], {"test_gradients"}, NO_TARGET),
        # likewise; 400 steps of Adam enlarge rounding to 2e-3 (see the test in double precision)
        (["papers.disc.explain:explain"], {"test_gradients", "test_batch"}, set()),
        # confidence and status are those of the latent, not of the image that it is decoded to
        ([*CLARITY, "tiny_systems:clarity"], {"test_confidence", "test_status"}, OWN_CLASSIFIER),
        ([*CLARITY, "tiny_systems:clarity_of_images"], set(), OWN_CLASSIFIER),
        (["papers.contrastive.explain:explain", "--classifier", "tiny_systems:contrastive"], set(), OWN_CLASSIFIER),
    ],
    ids=["svce", "pixel-ascent", "fido", "disc", "clarity", "clarity-of-images", "contrastive"],
)
def test_our_methods_pass_but_for_what_is_explained(kit, arguments, failed, skipped):
    outcomes, text = kit("--explainer", *arguments)
    assert outcomes["failed"] == failed and outcomes["skipped"] == skipped, text
    assert outcomes["passed"] == TESTS - failed - skipped


def test_disc_depends_on_the_batch_by_rounding_alone(monkeypatch):
    """In double precision the result of an image in another batch is the same to 1e-9."""
    uniform = Streams.uniform
    monkeypatch.setattr(Streams, "uniform", lambda *arguments: uniform(*arguments).double())
    single = problems.trained()[range(4)]
    problem = Problem(single.classifier.double(), single.images.double(), single.source, single.target, single.ids)
    torch.set_default_dtype(torch.float64)
    try:
        whole, part = (
            disc(asked.images, asked.source, asked.target, classifier=asked.classifier, rng=asked.rng)
            for asked in (problem, problem[[2, 0]])
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(part.images, whole.images[[2, 0]], atol=1e-9, rtol=0)
    assert torch.allclose(part.confidence, whole.confidence[[2, 0]], atol=1e-9, rtol=0)


# the kit can fail

BROKEN = {
    "cropped": {"test_shapes"},
    "one_strength": {"test_shapes"},
    "unknown_status": {"test_shapes"},
    "out_of_range": {"test_range"},
    "nan": {"test_range"},
    "claims_confidence": {"test_confidence", "test_linear"},
    "claims_ok": {"test_status", "test_constant"},
    "claims_nothing": {"test_status"},
    "claims_nearness": {"test_distance"},
    "modifies_images": {"test_inputs"},
    "modifies_classifier": {"test_inputs"},
    "leaves_gradients": {"test_gradients"},
    "watched": {"test_callback"},
    "global_state": {"test_same_bits"},
    "by_position": {"test_batch"},
    "by_neighbours": {"test_batch"},
    "identity": {"test_linear", "test_way_back"},
    "undirected": {"test_irrelevant"},
    "pasted": {"test_randomised"},
    "one_way": {"test_way_back"},
    "crashes_when_already_there": {"test_already_there"},
}


def test_an_honest_method_passes_everything(kit):
    outcomes, text = kit("--explainer", "toy_explainers:honest", "--strengths", "1,4")
    assert outcomes["passed"] == TESTS and "1, 4" in text


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_fails_the_test_that_is_meant_for_it(kit, name):
    outcomes, text = kit("--explainer", f"toy_explainers:{name}", "-k", " or ".join(BROKEN[name]))
    assert outcomes["failed"] == BROKEN[name], text


def test_every_test_of_the_kit_can_fail():
    assert set().union(*BROKEN.values()) == TESTS


def test_a_method_that_never_ends_is_stopped(kit, monkeypatch):
    monkeypatch.setattr(subject, "LIMIT", 0.5)
    outcomes, text = kit("--explainer", "toy_explainers:never_ends", "-k", "constant")
    assert outcomes["failed"] == {"test_constant"} and "did not come to an end within 0.5 s" in text


# the command line


def test_the_example_of_the_readme_passes(kit, tmp_path, monkeypatch):
    readme = (ROOT / "comparison/conformance/README.md").read_text()
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1])
    monkeypatch.syspath_prepend(tmp_path)
    outcomes, text = kit("--explainer", "mine:explain")
    assert outcomes["passed"] == TESTS, text


def test_the_kit_runs_alone_from_a_shell_and_prints_what_it_measured():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--explainer", "toy_explainers:honest"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^{len(TESTS) + 6} passed", done.stdout, re.MULTILINE)  # six tests see two shapes
    assert "measured on toy_explainers:honest" in done.stdout
    assert re.search(r"^linear +cosine of the change with w \(best 1\) +(1|0\.99\d*)$", done.stdout, re.MULTILINE)


def test_a_skipped_test_says_why(kit):
    arguments = ("papers.contrastive.explain:explain", "--classifier", "tiny_systems:contrastive", "-k", "linear")
    assert re.search(r"^linear +the method explains a classifier of its own", kit("--explainer", *arguments)[1], re.M)
    arguments = ("papers.fido.explain:explain", "--untargeted", "-k", "way_back")
    assert re.search(r"^way_back +an untargeted method", kit("--explainer", *arguments)[1], re.M)


def test_without_a_method_the_kit_is_not_collected(kit):
    outcomes, text = kit("--collect-only", "tests/test_reference.py")
    assert "test_kit" not in text
    outcomes, text = kit("comparison/conformance")
    assert outcomes == {"passed": set(), "failed": set(), "skipped": TESTS}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--explainer", "nowhere:explain"], "--explainer nowhere:explain: No module named 'nowhere'; give"),
        (["--explainer", "common.anchors"], "--explainer common.anchors: no function is named"),
        (["--explainer", "toy_explainers:nan", "--classifier", "toy_explainers:no"], "--classifier toy_explainers:no:"),
        (["--untargeted"], "--untargeted: says how a method is tested; name the method by --explainer"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(launch, arguments, said):
    result = launch(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert next(filter(None, result.errlines)).startswith(f"ERROR: {said}")
