"""What one method finds for images that have been read: paths of counterfactuals, and all that is measured of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import torch
from torch import Tensor

from common.classifiers.base import Classifier
from common.explain import CounterfactualBatch, Explainer, Streams
from common.files import sha256
from common.metrics.perturbation import hoyer, lp_norm, pixel_share
from vce.methods import METHODS


@dataclass(frozen=True)
class Request:
    """What to explain and how: `explain` is the method's contract function; one path for every image and one target, or
    None for the runner-up class of each."""

    method: str
    explain: Explainer
    classifier: Classifier
    target: int | None
    strengths: tuple[float, ...]
    seed: int
    batch_size: int


@dataclass(frozen=True)
class Explanation:
    """One image and what a method found for it.

    `record` is what `explanation.json` holds; `image` is C×H×W in [0, 1]. `path` S×C×H×W in [0, 1] holds the
    counterfactuals, None where the image was skipped; `reference` C×H×W is the reconstruction that a method's own
    change starts from, and `saliency` H×W its map, where it has them. `chosen` is the place on the path of the weakest
    that flips, else of the strongest.
    """

    record: dict
    image: Tensor
    path: Tensor | None = None
    reference: Tensor | None = None
    saliency: Tensor | None = None
    chosen: int = 0

    @property
    def start(self) -> Tensor:
        """C×H×W, where the path starts: the reconstruction where there is one, else the image."""
        return self.image if self.reference is None else self.reference

    @property
    def delta(self) -> Tensor:
        """The method's own change along its path, S×C×H×W in [-1, 1]: it leaves out what a reconstruction missed."""
        return self.path - self.start

    @property
    def rows(self) -> list[dict]:
        """The S rows of the record, weakest first."""
        return self.record["counterfactuals"]


def explain_batch(
    paths: Sequence[Path], loaded: dict[int, Tensor], request: Request, callback: Callable[[dict], None] | None
) -> Iterator[tuple[int, Explanation]]:
    """Explain the images C×H×W of `loaded`, whose keys are places in `paths`, in one batch; yield each with its key.

    Images that the classifier already sees as the target come first, as `skipped`. Raises what the method raises.
    """
    classifier = request.classifier
    images = torch.stack(list(loaded.values()))
    with torch.no_grad():
        before = classifier(images).softmax(1)
    source = before.argmax(1)
    runner_up = before.scatter(1, source[:, None], -1.0).argmax(1)
    target = runner_up if request.target is None else torch.full((len(images),), request.target)
    known = {
        index: facts(paths[index], request) | _seen(paths[index], request.classifier, before[row], int(target[row]))
        for row, index in enumerate(loaded)
    }
    rows = [row for row in range(len(images)) if source[row] != target[row]]
    for row, index in enumerate(loaded):
        if row not in rows:
            why = {"status": "skipped", "note": "the classifier already predicts the target; choose another one"}
            yield index, Explanation(why | known[index], images[row])
    if not rows:
        return
    indices = [list(loaded)[row] for row in rows]
    ids = tuple(known[index]["image_sha256"][:16] for index in indices)
    began = time.perf_counter()
    answer = request.explain(
        images[rows],
        source[rows],
        target[rows],
        classifier=classifier,
        rng=Streams(request.seed, ids, tuple(target[rows].tolist())),
        strengths=request.strengths,
        callback=callback,
    )
    seconds = time.perf_counter() - began
    for sample, index in enumerate(indices):
        yield index, _explanation(known[index], images[rows[sample]], answer, sample, seconds, request)


def facts(path: Path, request: Request) -> dict:
    """What every record says, whatever becomes of the image."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    about = METHODS[request.method].about
    known = {"about": about} if about else {}
    if request.target is not None:
        known["target"] = _class(request.classifier, request.target)
    return known | {
        "image": one_line(str(path)),
        "method": request.method,
        "classifier": request.classifier.name,
        "seed": request.seed,
        "versions": {"python": python_version()} | {package: version(package) for package in packages},
    }


def one_line(text: str) -> str:
    """One line that UTF-8 can hold, whatever bytes a file name has."""
    return " ".join(text.encode(errors="replace").decode().split())


def sizes(delta: Tensor) -> list[dict]:
    """How large and how sparse each of S changes S×C×H×W is, as JSON numbers; None where a value is no number, as the
    sparsity of no change is."""
    exact = delta.double()
    found = {
        "l1": lp_norm(exact, 1),
        "l1.5": lp_norm(exact, 1.5),
        "l2": lp_norm(exact, 2),
        "mean_abs_change": exact.abs().flatten(1).mean(1),
        "hoyer": hoyer(exact),
        "pixel_share": pixel_share(delta),
    }
    return [{name: _number(values[s]) for name, values in found.items()} for s in range(len(delta))]


def _class(classifier: Classifier, index: int) -> dict:
    return {"index": index, "name": classifier.class_names[index]}


def _seen(path: Path, classifier: Classifier, before: Tensor, target: int) -> dict:
    """What the classifier sees in the original, from its K probabilities `before`, and where it is to go."""
    source = int(before.argmax())
    return {
        "image_sha256": sha256(path),
        "target": _class(classifier, target),
        "source": {
            **_class(classifier, source),
            "confidence": float(before[source]),
            "target_confidence": float(before[target]),
        },
    }


def _explanation(
    known: dict, image: Tensor, answer: CounterfactualBatch, sample: int, seconds: float, request: Request
) -> Explanation:
    """What was found for one sample of a batch; `seconds` of the batch are shared out by passes (NFE)."""
    label = METHODS[request.method].label
    path = answer.images[sample]
    reference = None if answer.reference is None else answer.reference[sample]
    saliency = None if answer.saliency is None else answer.saliency[sample]
    chosen = next((s for s, status in enumerate(answer.status[sample]) if status == "ok"), len(path) - 1)
    nfe = answer.forward + answer.backward
    with torch.no_grad():
        after = request.classifier(path).softmax(1)
    left, predicted = after[:, known["source"]["index"]], after.argmax(1)
    rows = []
    for s, (strength, size) in enumerate(zip(answer.strengths, sizes(path - image), strict=True)):
        rows.append(
            {
                label: strength,
                "file": f"counterfactual_{label}{strength:.10g}.png",
                "status": str(answer.status[sample][s]),
                "confidence": _number(answer.confidence[sample, s]),
                "source_confidence": _number(left[s]),
                "predicted": {
                    **_class(request.classifier, int(predicted[s])),
                    "confidence": _number(after[s, predicted[s]]),
                },
                **size,
                "nfe": int(nfe[sample, s]),
                "seconds": round(seconds * (float(nfe[sample, s] / nfe.sum()) if nfe.sum() else 1 / nfe.numel()), 4),
            }
        )
    more = {} if saliency is None else {"mask_area": _number((saliency > 0.5).float().mean())}
    if reference is not None:  # what the method's own change starts from, and how far that is from the image
        with torch.no_grad():
            drawn = request.classifier(reference[None]).softmax(1)[0]
        more["reconstruction_error"] = {
            "mean_abs": _number((reference - image).abs().mean()),
            "rms": _number((reference - image).square().mean().sqrt()),
            "target_confidence": _number(drawn[known["target"]["index"]]),
            "source_confidence": _number(drawn[known["source"]["index"]]),
        }
    record = {"status": rows[chosen]["status"]} | known | more
    record |= {"chosen": rows[chosen][label], "counterfactuals": rows}
    return Explanation(record, image, path, reference, saliency, chosen)


def _number(value: Tensor) -> float | None:
    """A JSON number; none where a method diverged."""
    return float(value) if value.isfinite() else None
