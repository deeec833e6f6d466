"""From image files to folders of counterfactuals: read, explain in batches, write. The cli only parses."""

import difflib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.classifiers.base import Classifier
from common.data.images import SUFFIXES, load_image, save_image
from common.errors import VceError
from common.explain import MAX_STRENGTHS
from common.files import write_atomic
from common.metrics.perturbation import pixel_change
from common.progress import Progress
from vce.explanation import Explanation, Request, explain_batch, facts, one_line
from vce.methods import METHODS
from vce.pictures import draw_difference, draw_overview, draw_saliency

RECORD = "explanation.json"


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


def check_out(out: Path) -> None:
    """Raise VceError where the folder `out` cannot be written: before the work, not after it."""
    nearest = next(path for path in (out, *out.resolve().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise VceError(f"{out}: {nearest} is no folder that can be written; choose another --out")


def explain_files(paths: Sequence[Path], request: Request, out: Path, progress: Progress) -> list[dict]:
    """Explain image files in batches; write the folder `out/<stem>` for each, whole or not at all; return the records.

    A record is what `explanation.json` holds. Its status is `unreadable` (with the error), `skipped` (already predicted
    as the target) or that of the counterfactual chosen as `counterfactual.png`: the weakest that flips, else the
    strongest. Files of equal stem get `-2`, `-3`, ... An earlier result is replaced.
    Raises VceError when a folder in `out` is not ours to replace, or when the disk is full.
    """
    folders = _folders(paths, out)
    check_out(out)
    records: dict[int, dict] = {}
    for start in range(0, len(paths), request.batch_size):
        batch = range(start, min(start + request.batch_size, len(paths)))
        loaded = {}
        for index in batch:
            try:
                loaded[index] = load_image(paths[index], request.classifier.image_shape)
            except VceError as error:
                why = {"status": "unreadable", "error": one_line(str(error))}
                records[index] = why | facts(paths[index], request)
                _write(folders[index], records[index])
        for index, explanation in explain_batch(paths, loaded, request, progress) if loaded else ():
            records[index] = explanation.record
            _write_result(folders[index], explanation)
        progress.advance(len(batch))
    return [records[index] for index in range(len(paths))]


def _write_result(folder: Path, explanation: Explanation) -> None:
    """Write the record of one image and, unless it was skipped, its pictures."""
    if explanation.path is None:
        return _write(folder, explanation.record)
    record, rows, method = explanation.record, explanation.rows, METHODS[explanation.record["method"]]
    label, source, target = method.label, record["source"], record["target"]
    change = pixel_change(explanation.delta)
    shown, value = (source, "source_confidence") if method.untargeted else (target, "confidence")
    titles = [f"{label} {row[label]:g}: {shown['name']} {_percent(row[value])}{_short(row, label)}" for row in rows]
    with _whole_folder(folder) as temporary:
        for row, counterfactual in zip(rows, explanation.path, strict=True):
            save_image(counterfactual, temporary / row["file"])
        save_image(explanation.path[explanation.chosen], temporary / "counterfactual.png")
        draw_difference(change[explanation.chosen], temporary / "difference.png")
        first = f"original: {source['name']} {_percent(source['confidence'])}"
        if explanation.reference is not None:
            save_image(explanation.reference, temporary / "reconstruction.png")
        if explanation.saliency is not None:
            draw_saliency(explanation.image, explanation.saliency, temporary / "saliency.png")
            save_image((explanation.saliency > 0.5).float()[None], temporary / "mask.png")
        pictures = (explanation.image, explanation.reference, explanation.path)
        draw_overview(*pictures, change, (first, titles), temporary / "overview.png")
        _write_record(temporary, record)


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


def _write(folder: Path, record: dict) -> None:
    with _whole_folder(folder) as temporary:
        _write_record(temporary, record)


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
