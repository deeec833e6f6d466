"""From image files to folders of counterfactuals: read, explain in batches, measure, write. The cli only parses."""

import difflib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import torch
from torch import Tensor

from common.classifiers.base import Classifier
from common.data.images import SUFFIXES, load_image, save_image
from common.errors import VceError
from common.explain import MAX_STRENGTHS, CounterfactualBatch, Explainer, Streams
from common.files import sha256, write_atomic
from common.progress import Progress
from vce.methods import METHODS
from vce.pictures import draw_difference, draw_overview, draw_saliency

RECORD = "explanation.json"


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


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """The files named, and the image files directly inside the folders named, each once, in that order.

    Raises VceError for a folder without images. A missing file stays in the list: it becomes an `unreadable` record.
    """
    found = []
    for path in arguments:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(item for item in path.iterdir() if item.suffix.lower() in SUFFIXES and item.is_file())
        if not inside:
            raise VceError(f"--image {path}: no images in this folder; it needs files of type {' '.join(SUFFIXES)}")
        found += inside
    return list({path.resolve(): path for path in found}.values())


def find_class(classifier: Classifier, text: str) -> int:
    """The class index that `text` names: an index, a class name, or a part of exactly one class name.

    Raises VceError with the candidates when there is none or more than one.
    """
    names = classifier.class_names
    if text.isascii() and text.isdigit():
        if int(text) >= len(names):
            raise VceError(f"--target {text}: {classifier.name} has classes 0 to {len(names) - 1}")
        return int(text)
    wanted = text.casefold()
    exact = [index for index, name in enumerate(names) if name.casefold() == wanted]
    matches = exact or [index for index, name in enumerate(names) if wanted and wanted in name.casefold()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        shown = ", ".join(f"{index} {names[index]}" for index in matches[:8])
        rest = ", ..." if len(matches) > 8 else ""
        raise VceError(f"--target {text!r}: {len(matches)} classes match ({shown}{rest}); give the index")
    folded = {name.casefold(): name for name in names}
    close = [folded[name] for name in difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)]
    known = f"choose one of {', '.join(names)}" if len(names) <= 12 else f"give an index from 0 to {len(names) - 1}"
    fix = f"did you mean {' or '.join(close)}?" if close else known
    raise VceError(f"--target {text!r}: {classifier.name} has no such class; {fix}")


def check_strengths(strengths: Sequence[float]) -> tuple[float, ...]:
    """The strengths sorted, each once. Raises VceError unless they are 1 to 8 positive numbers."""
    for strength in strengths:
        if not (math.isfinite(strength) and strength > 0):
            raise VceError(f"--strength {strength}: give a positive number")
    if len(set(strengths)) > MAX_STRENGTHS:
        raise VceError(f"--strength: {len(set(strengths))} values; at most {MAX_STRENGTHS} in one run")
    return tuple(sorted(set(strengths)))


def explain_files(paths: Sequence[Path], request: Request, out: Path, progress: Progress) -> list[dict]:
    """Explain image files in batches; write the folder `out/<stem>` for each, whole or not at all; return the records.

    A record is what `explanation.json` holds. Its status is `unreadable` (with the error), `skipped` (already predicted
    as the target) or that of the counterfactual chosen as `counterfactual.png`: the weakest that flips, else the
    strongest. Files of equal stem get `-2`, `-3`, ... An earlier result is replaced.
    Raises VceError when a folder in `out` is not ours to replace, or when the disk is full.
    """
    folders = _folders(paths, out)
    nearest = next(path for path in (out, *out.resolve().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):  # before the work, not after it
        raise VceError(f"{out}: {nearest} is no folder that can be written; choose another --out")
    records: dict[int, dict] = {}
    for start in range(0, len(paths), request.batch_size):
        batch = range(start, min(start + request.batch_size, len(paths)))
        loaded = {}
        for index in batch:
            try:
                loaded[index] = load_image(paths[index], request.classifier.image_shape)
            except VceError as error:
                why = {"status": "unreadable", "error": _text(str(error))}
                records[index] = _written(folders[index], why | _facts(paths[index], request))
        if loaded:
            records.update(_explain_batch(paths, loaded, folders, request, progress))
        progress.advance(len(batch))
    return [records[index] for index in range(len(paths))]


def _explain_batch(
    paths: Sequence[Path], loaded: dict[int, Tensor], folders: list[Path], request: Request, progress: Progress
) -> Iterator[tuple[int, dict]]:
    """Index and record of each image in `loaded` (index to tensor), after their folders have been written."""
    classifier = request.classifier
    images = torch.stack(list(loaded.values()))
    with torch.no_grad():
        before = classifier(images).softmax(1)
    source = before.argmax(1)
    runner_up = before.scatter(1, source[:, None], -1.0).argmax(1)
    target = runner_up if request.target is None else torch.full((len(images),), request.target)
    facts = {
        index: _facts(paths[index], request) | _seen(paths[index], request.classifier, before[row], int(target[row]))
        for row, index in enumerate(loaded)
    }
    rows = [row for row in range(len(images)) if source[row] != target[row]]
    for row, index in enumerate(loaded):
        if row not in rows:
            why = {"status": "skipped", "note": "the classifier already predicts the target; choose another one"}
            yield index, _written(folders[index], why | facts[index])
    if not rows:
        return
    indices = [list(loaded)[row] for row in rows]
    ids = tuple(facts[index]["image_sha256"][:16] for index in indices)
    began = time.perf_counter()
    answer = request.explain(
        images[rows],
        source[rows],
        target[rows],
        classifier=classifier,
        rng=Streams(request.seed, ids, tuple(target[rows].tolist())),
        strengths=request.strengths,
        callback=progress,
    )
    seconds = time.perf_counter() - began
    for sample, index in enumerate(indices):
        image = images[rows[sample]]
        yield index, _write_result(folders[index], facts[index], image, answer, sample, seconds, request)


def _facts(path: Path, request: Request) -> dict:
    """What every record says, whatever becomes of the image."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    about = METHODS[request.method].about
    known = {"about": about} if about else {}
    if request.target is not None:
        known["target"] = _class(request.classifier, request.target)
    return known | {
        "image": _text(str(path)),
        "method": request.method,
        "classifier": request.classifier.name,
        "seed": request.seed,
        "versions": {"python": python_version()} | {package: version(package) for package in packages},
    }


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


def _write_result(
    folder: Path, facts: dict, image: Tensor, answer: CounterfactualBatch, sample: int, seconds: float, request: Request
) -> dict:
    """Write one image's folder and return its record; `seconds` of the batch are shared out by passes (NFE)."""
    label = METHODS[request.method].label
    paths = answer.images[sample]
    reference = None if answer.reference is None else answer.reference[sample]
    change = (paths - (image if reference is None else reference)).abs().sum(1)
    chosen = next((s for s, status in enumerate(answer.status[sample]) if status == "ok"), len(paths) - 1)
    nfe = answer.forward + answer.backward
    with torch.no_grad():
        after = request.classifier(paths).softmax(1)
    left, predicted = after[:, facts["source"]["index"]], after.argmax(1)
    rows = []
    for s, strength in enumerate(answer.strengths):
        delta = (paths[s] - image).double().abs().flatten()
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
                "l1": _number(delta.sum()),
                "l1.5": _number(delta.pow(1.5).sum() ** (1 / 1.5)),
                "l2": _number(delta.norm()),
                "mean_abs_change": _number(delta.mean()),
                "nfe": int(nfe[sample, s]),
                "seconds": round(seconds * (float(nfe[sample, s] / nfe.sum()) if nfe.sum() else 1 / nfe.numel()), 4),
            }
        )
    status = rows[chosen]["status"]
    mask = None if answer.saliency is None else (answer.saliency[sample] > 0.5).float()
    more = {} if mask is None else {"mask_area": _number(mask.mean())}
    if reference is not None:  # what the method's own change starts from, and how far that is from the image
        with torch.no_grad():
            drawn = request.classifier(reference[None]).softmax(1)[0]
        more["reconstruction_error"] = {
            "mean_abs": _number((reference - image).abs().mean()),
            "rms": _number((reference - image).square().mean().sqrt()),
            "target_confidence": _number(drawn[facts["target"]["index"]]),
        }
    record = {"status": status} | facts | more | {"chosen": rows[chosen][label], "counterfactuals": rows}
    source, target = facts["source"], facts["target"]
    shown, value = (source, "source_confidence") if METHODS[request.method].untargeted else (target, "confidence")
    titles = [f"{label} {row[label]:g}: {shown['name']} {_percent(row[value])}{_short(row, label)}" for row in rows]
    with _whole_folder(folder) as temporary:
        for row, counterfactual in zip(rows, paths, strict=True):
            save_image(counterfactual, temporary / row["file"])
        save_image(paths[chosen], temporary / "counterfactual.png")
        draw_difference(change[chosen], temporary / "difference.png")
        first = f"original: {source['name']} {_percent(source['confidence'])}"
        if reference is not None:
            save_image(reference, temporary / "reconstruction.png")
        if mask is not None:
            draw_saliency(image, answer.saliency[sample], temporary / "saliency.png")
            save_image(mask[None], temporary / "mask.png")
        draw_overview(image, reference, paths, change, (first, titles), temporary / "overview.png")
        _write_record(temporary, record)
    return record


def _text(text: str) -> str:
    """One line that UTF-8 can hold, whatever bytes a file name has."""
    return " ".join(text.encode(errors="replace").decode().split())


def _short(row: dict, label: str) -> str:
    """What a picture's title adds where it is not what was asked for."""
    if row["status"] == "diverged":
        return ", diverged"
    if label == "share":
        return ""
    if label == "tau" and row["confidence"] is not None and row["confidence"] < row[label] - 1e-6:
        return ", not reached"
    return ", not flipped" if row["status"] == "not_flipped" else ""


def _percent(confidence: float | None) -> str:
    return "?" if confidence is None else f"{100 * confidence:.1f} %"


def _number(value: Tensor) -> float | None:
    """A JSON number; none where a method diverged."""
    return float(value) if value.isfinite() else None


def _folders(paths: Sequence[Path], out: Path) -> list[Path]:
    """One folder per image, named by its stem; refuses what an earlier run of ours did not write."""
    used: dict[Path, None] = {}
    for path in paths:
        number, folder = 2, out / path.stem
        while folder in used:
            number, folder = number + 1, out / f"{path.stem}-{number}"
        used[folder] = None
        if folder.exists() and not (folder / RECORD).is_file():
            raise VceError(f"{folder}: exists and is no earlier result; choose another --out")
    return list(used)


def _written(folder: Path, record: dict) -> dict:
    with _whole_folder(folder) as temporary:
        _write_record(temporary, record)
    return record


def _write_record(folder: Path, record: dict) -> None:
    write_atomic(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on any error it is removed."""
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise VceError(f"{path}: the disk is full; free some space and run the same command again") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
