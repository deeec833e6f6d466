"""C12, "users judge l1.5-VCEs best": a blinded rating sheet with a sealed key, and the scoring of returned sheets.

    python -m papers.svce.rating sheet --shard work/cpu/svce/batches/pairs/scenes/l2at-0.safetensors \\
        --methods apgd/l2/k75 afw-b/l1.5/k75 blended --trials 12 --level 0.9 --seed 0 --out rating/
    python -m papers.svce.rating score --key rating/key.json --answers answers-ann.json answers-bo.json --out scores.csv

`sheet` writes `sheet.html`, one file that works offline and goes to the raters, and `key.json`, which stays with
whoever scores and says which option is which method. The sheet prints the key's sha256 and the answers carry it, so an
edited key and answers to another sheet are refused. Raters must not hold the shard: its images would open the blind.

The paper's study (participants, images, wording) is unknown: the questions are this repository's own, and scores must
not be compared with the paper's. Without returned sheets the claim is not tested.
"""

import argparse
import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import pandas as pd
import torch
from jinja2 import StrictUndefined, Template
from PIL import Image
from torch import Tensor

from common.batches import Shard, read_shard
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import Streams
from common.files import sha256, write_atomic
from common.statistics import REPLICATES, Estimate

# worded by this repository, the paper's wording is unknown; TARGET becomes the name of the target class
QUESTIONS = {
    "realistic": "Realistic: it could be an unedited picture of its kind.",
    "meaningful": "Meaningful: it looks like TARGET.",
    "subtle": "Subtle: nothing changed that need not have changed.",
}
RATINGS = (1, 2, 3, 4, 5)
PLACE = ("trial", "option", "question")
NORM = "l1.5"  # of the method that the claim is about
AGAIN = "ask the rater to download the answers again"
SIDE = 224  # pictures are drawn about this wide, at a whole multiple of their pixels


@dataclass(frozen=True)
class Trial:
    """One sample under all M methods, in the order shown.

    `source` and `target` are class indices; `options` maps A, B, ... to method, strength, confidence and `reached`
    (confidence ≥ the level); `images` are the options' counterfactuals, M×C×H×W in [0, 1].
    """

    name: str
    image_id: str
    source: int
    target: int
    options: dict[str, dict]
    images: Tensor


@dataclass(frozen=True)
class Key:
    """An opened key: sha256 of its file; the method others are compared with; trial → option → facts."""

    sha256: str
    reference: str
    trials: dict[str, dict[str, dict]]


def draw_trials(shard: Shard, methods: Sequence[str], n: int, level: float, seed: int) -> list[Trial]:
    """`n` samples of a shard in random order, each with its own random order of the methods.

    Draws come from the streams of (seed, image id, target). A method shows its first image with own confidence ≥
    `level`, else its last. Raises VceError for unknown or repeated methods, not one l1.5 among them, a bad n or level.
    """
    if unknown := [method for method in methods if method not in shard.batches]:
        raise VceError(f"the shard has no method {', '.join(unknown)}; --methods can be {', '.join(shard.batches)}")
    if not 2 <= len(set(methods)) == len(methods) <= len(ascii_uppercase) or sum(map(_is_reference, methods)) != 1:
        rule = f"2 to {len(ascii_uppercase)} methods, each once and exactly one of them with {NORM}"
        raise VceError(f"--methods {' '.join(methods)}: name {rule}, such as afw-b/{NORM}/k75")
    if not 1 <= n <= len(shard.ids):
        raise VceError(f"the shard has {len(shard.ids)} samples; set --trials between 1 and {len(shard.ids)}, not {n}")
    if not 0 <= level <= 1:
        raise VceError(f"--level {level:g}: a confidence lies between 0 and 1")
    samples = list(zip(shard.ids, shard.source.tolist(), shard.target.tolist(), strict=True))
    streams = Streams(seed, shard.ids, tuple(shard.target.tolist()))
    rows = streams.uniform((), "rating trials").argsort(stable=True)[:n].tolist()
    orders = streams.uniform((len(methods),), "rating options").argsort(stable=True, dim=1).tolist()
    shown = {method: shard.batches[method].first_success(level) for method in methods}
    trials = []
    for position, row in enumerate(rows, start=1):
        options, images = {}, []
        for letter, method in zip(ascii_uppercase, (methods[i] for i in orders[row]), strict=False):
            batch, at = shard.batches[method], int(shown[method][row])
            confidence = batch.confidence[row, at].item()
            facts = {"method": method, "strength": float(batch.strengths[at]), "confidence": confidence}
            options[letter] = {**facts, "reached": confidence >= level}
            images.append(batch.images[row, at])
        trials.append(Trial(f"T{position}", *samples[row], options, torch.stack(images)))
    return trials


def _is_reference(method: str) -> bool:
    return NORM in method.split("/")


def seal(trials: Sequence[Trial], level: float, seed: int, shard_sha256: str) -> bytes:
    """The key file of these trials; the same arguments give the same bytes."""
    nonce = hashlib.sha256(f"rating|{seed}|{shard_sha256}".encode()).hexdigest()
    body = {"nonce": nonce, "shard_sha256": shard_sha256, "seed": seed, "level": level, "questions": QUESTIONS}
    fields = ("image_id", "source", "target", "options")
    shown = {trial.name: {field: getattr(trial, field) for field in fields} for trial in trials}
    (reference,) = (facts["method"] for facts in trials[0].options.values() if _is_reference(facts["method"]))
    return _sealed({**body, "reference": reference, "trials": shown})


def _sealed(body: dict) -> bytes:
    """JSON that holds a digest of its own content, so that an edited key is told from the key of another sheet."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "seal": digest}, indent=1, sort_keys=True) + "\n").encode()


def render_sheet(trials: Sequence[Trial], originals: Tensor, class_names: Sequence[str], key_sha256: str) -> str:
    """The HTML sheet, one file; `originals` are the samples before any change, trials×C×H×W in [0, 1]."""
    height, width = originals.shape[2:]
    scale = max(1, round(SIDE / width))
    text = Path(__file__).with_name("rating_sheet.html").read_text()
    template = Template(text, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    shown = []
    for trial, original in zip(trials, originals, strict=True):
        pair = {"source": class_names[trial.source], "target": class_names[trial.target]}
        pictures = dict(zip(trial.options, map(_data_uri, trial.images), strict=True))
        shown.append({"name": trial.name, **pair, "original": _data_uri(original), "options": pictures})
    facts = {"key_sha256": key_sha256, "width": scale * width, "height": scale * height}
    return template.render(trials=shown, questions=QUESTIONS, ratings=RATINGS, **facts)


def _data_uri(image: Tensor) -> str:
    """C×H×W in [0, 1], 1 or 3 channels, as an 8-bit PNG without metadata."""
    values = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(values.squeeze(2) if values.shape[2] == 1 else values).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_key(path: Path) -> Key:
    """Open a sealed key. Raises VceError when it is missing, no key, or not byte for byte as it was written."""
    content, raw = _read_json(path, "give the key.json written beside the sheet")
    body = {name: value for name, value in content.items() if name != "seal"}
    if _sealed(body) != raw or "trials" not in body:
        raise VceError(f"{path}: no key, or altered since it was sealed; run `sheet` again with the same arguments")
    trials = {name: trial["options"] for name, trial in body["trials"].items()}
    return Key(hashlib.sha256(raw).hexdigest(), body["reference"], trials)


def read_answers(path: Path, key: Key) -> pd.DataFrame:
    """One returned sheet, columns rater, trial, option, question, rating: every question of the key exactly once.

    Raises VceError for a file that is missing or no answers file, answers to another sheet, an unknown trial, option or
    question, a rating that is not 1 to 5, a doubled or a missing answer.
    """
    content, _ = _read_json(path, AGAIN)
    entries, rater, sheet = (content.get(name) for name in ("answers", "rater", "key_sha256"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise VceError(f"{path}: `answers` is no list of trial, option, question and rating; {AGAIN}")
    if not isinstance(rater, str) or not rater.strip():
        raise VceError(f"{path}: the rater has no name; set `rater` to a pseudonym")
    if sheet != key.sha256:
        raise VceError(f"{path}: answers to the sheet of key {sheet!s:.12}, not {key.sha256:.12}; score with that key")
    expected = [(t, o, q) for t, options in key.trials.items() for o in options for q in QUESTIONS]
    given = {}
    for entry in entries:
        place, rating = tuple(entry.get(name) for name in PLACE), entry.get("rating")
        if place not in expected:
            raise VceError(f"{path}: {_where(place)} is not on the sheet; {AGAIN}")
        if type(rating) is not int or rating not in RATINGS:
            raise VceError(f"{path}: {_where(place)}: rating {rating!r:.40} is no whole number from 1 to 5; {AGAIN}")
        if place in given:
            raise VceError(f"{path}: {_where(place)} is answered twice; keep one of the two entries")
        given[place] = rating
    if missing := [place for place in expected if place not in given]:
        raise VceError(f"{path}: {_where(missing[0])} is not answered; {AGAIN}")
    return pd.DataFrame([(rater.strip(), *at, given[at]) for at in expected], columns=["rater", *PLACE, "rating"])


def _where(place: tuple) -> str:
    return ", ".join(f"{name} {value!s:.40}" for name, value in zip(PLACE, place, strict=True))


def read_all_answers(paths: Sequence[Path], key: Key) -> pd.DataFrame:
    """Returned sheets, one per rater. Raises VceError also when two files come from the same rater."""
    sheets, seen = [read_answers(path, key) for path in paths], {}
    for path, sheet in zip(paths, sheets, strict=True):
        name = sheet["rater"].iloc[0].casefold()
        if name in seen:
            raise VceError(f"{path}: rater {name!r:.40} gave {seen[name]} too; leave one out, or rename one")
        seen[name] = path
    return pd.concat(sheets, ignore_index=True)


def crossed_bootstrap(values: np.ndarray, *, key: int = 0, replicates: int = REPLICATES) -> Estimate:
    """Mean of raters×trials `values` with a 95 % percentile interval over raters and trials.

    All raters see the same trials, so a resample draws raters, then trials, and crosses them: the interval covers other
    raters and other samples of the same world, classifier and methods. It is too narrow below about five raters; with
    one it is an image-clustered bootstrap and covers the choice of trials alone. `by_seed` are the raters' means.
    """
    rng = np.random.Generator(np.random.Philox(key=key))
    by_rater, by_trial = (rng.multinomial(n, np.full(n, 1 / n), replicates) / n for n in values.shape)
    low, high = np.quantile(((by_rater @ values) * by_trial).sum(1), [0.025, 0.975])
    return Estimate(values.mean().item(), low.item(), high.item(), values.shape[1], tuple(values.mean(1).tolist()))


def score(answers: pd.DataFrame, key: Key) -> pd.DataFrame:
    """One row per question and method: mean rating, and its paired difference to the reference (negative: the
    reference is rated higher), each with the interval of `crossed_bootstrap`; numbers of raters and trials; `reached`,
    the share of trials in which the method's image had the confidence asked for."""
    facts = {(trial, option): fact for trial, options in key.trials.items() for option, fact in options.items()}
    method = [facts[place]["method"] for place in zip(answers["trial"], answers["option"], strict=True)]
    cells = answers.assign(method=method).pivot(index=["question", "method", "rater"], columns="trial", values="rating")
    rows = []
    for question, name in product(QUESTIONS, sorted(set(method))):
        values, reference = (cells.loc[(question, item)].to_numpy(float) for item in (name, key.reference))
        own = crossed_bootstrap(values)
        row = {"question": question, "method": name, "mean": own.mean, "low": own.low, "high": own.high}
        if name != key.reference:
            paired = crossed_bootstrap(values - reference)
            row |= {"difference": paired.mean, "difference_low": paired.low, "difference_high": paired.high}
        reached = np.mean([fact["reached"] for fact in facts.values() if fact["method"] == name])
        rows.append({**row, "raters": len(values), "trials": own.n, "reached": reached})
    return pd.DataFrame(rows)


def _read_json(path: Path, fix: str) -> tuple[dict, bytes]:
    """The object in a JSON file, and the file's bytes."""
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise VceError(f"{path}: missing or not JSON ({error}); {fix}") from error
    return content, raw


def _write_sheet(args: argparse.Namespace) -> None:
    shard = read_shard(args.shard)
    try:
        trials = draw_trials(shard, args.methods, args.trials, args.level, args.seed)
    except VceError as error:
        raise VceError(f"{args.shard}: {error}") from error
    key, path = seal(trials, args.level, args.seed, sha256(args.shard)), args.out / "key.json"
    if path.exists() and path.read_bytes() != key:
        raise VceError(f"{path}: the key of another sheet, which may be with its raters; choose another --out")
    originals = datasets.load_ids(shard.world, tuple(trial.image_id for trial in trials), args.data).images
    names, sealed = datasets.world(shard.world).class_names, hashlib.sha256(key).hexdigest()
    write_atomic(path, key)
    write_atomic(args.out / "sheet.html", render_sheet(trials, originals, names, sealed))


def _write_scores(args: argparse.Namespace) -> None:
    key = read_key(args.key)
    table = score(read_all_answers(args.answers, key), key)
    write_atomic(args.out, table.to_csv(index=False, float_format="%.6g"))
    print(table.to_string(index=False, float_format="%.2f", na_rep=""))
    if len(args.answers) == 1:
        print("one rater: the intervals cover the choice of trials, but no other rater")


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sheet = commands.add_parser("sheet", help="write sheet.html for the raters and key.json for whoever scores")
    sheet.set_defaults(run=_write_sheet)
    sheet.add_argument("--shard", type=Path, required=True, help="the explained batches to show")
    sheet.add_argument("--methods", nargs="+", required=True, help=f"methods of the shard, one of them {NORM}")
    sheet.add_argument("--trials", type=int, default=12, help="number of samples")
    sheet.add_argument("--level", type=float, default=0.9, help="own confidence at which a path is shown")
    sheet.add_argument("--seed", type=int, default=0, help="of the order of trials and options")
    sheet.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    sheet.add_argument("--out", type=Path, required=True, help="folder of sheet.html and key.json")
    scores = commands.add_parser("score", help="score returned sheets")
    scores.set_defaults(run=_write_scores)
    scores.add_argument("--key", type=Path, required=True)
    scores.add_argument("--answers", type=Path, nargs="+", required=True, help="one file per rater")
    scores.add_argument("--out", type=Path, required=True, help="CSV to write")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
