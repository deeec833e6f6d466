"""A whole run that was never run: claims, tables, figures, rows and pictures of every part, for tests of the report."""

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from common.batches import Shard, write_shards
from common.data import datasets
from common.explain import finish
from common.parts import PARTS
from comparison.report.collect import CAPTIONS

SCALE = "test"
HOSTILE = "<script>document.title='owned'</script>\"'&amp; \u202eابج " + "x" * 300


def claim(statement: str, verdict: str, measured: float | None = 0.25) -> dict:
    numbers = {"measured": measured, "low": measured and measured - 0.1, "high": measured and measured + 0.1}
    about = {"statement": statement, "verdict": verdict, "where": "unknown", "paper": "unknown", "note": ""}
    return {**about, **numbers, "n": 40}


def write_part(root: Path, part: str, recipe: str = "aaaa", scale: str = SCALE) -> None:
    """Results of one part, with hostile names among them."""
    folder = root / "results" / scale / part
    (folder / "tables").mkdir(parents=True)
    claims = {"C1": claim("One is more than none", "supported"), "C10": claim(HOSTILE, "contradicted", -0.5)}
    claims["C2"] = claim("Nobody asked", "not tested", None)
    protocol = {"scale": scale, "recipe": recipe, "rules": "bbbb", "rows": "c" * 64, "pairs": 40, "seeds": 1}
    (folder / "claims.json").write_text(json.dumps({"protocol": protocol, "claims": claims}))
    table = pd.DataFrame({"name": ["NA", HOSTILE, "a"], "value": [10.0, np.nan, 9.5], "n": [3, 2, 1]})
    table.to_csv(folder / "tables" / "numbers.csv", index=False)
    figures = root / "figures" / scale / part
    figures.mkdir(parents=True)
    for name in yaml.safe_load(CAPTIONS.read_text())[part]:
        Image.new("RGB", (60, 40), (200, 220, 240)).save(figures / f"{name}.png")
    work = root / "work" / scale / part
    work.mkdir(parents=True)
    cost = {"method": [HOSTILE, "m"], "seconds": [1.0, 2.0], "evaluations": [10, 20], "overhead": [1.1, 1.2]}
    pd.DataFrame(cost).to_parquet(work / "cost.parquet")


def write_record(root: Path, path: Path) -> None:
    """What Snakemake would have kept of the job that wrote a file."""
    record = {
        "rule": "some_rule", "shellcmd": f"python -m papers.some.module --name {HOSTILE!r} 2> >(tee logs/a.log >&2)",
        "input": [f"work/{HOSTILE}.safetensors", "work/a"], "input_checksums": {"work/a": "sha256:" + "12" * 32},
    }  # fmt: skip
    name = base64.urlsafe_b64encode(path.relative_to(root).as_posix().encode()).decode()
    folder = root / ".snakemake" / "metadata"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(record))


def write_readme(root: Path, part: str) -> None:
    """Deviations with whatever Markdown may hold."""
    folder = root / part if part == "comparison" else root / "papers" / part
    folder.mkdir(parents=True)
    heading = "What the numbers do not mean" if part == "comparison" else "Deviations, numbered"
    wide = "| a | b |\n|---|---|\n| " + "wide " * 60 + " | `code` |"
    text = f"1. **Scale.** See [this](https://example.org/x).\n\n![picture](../docs/x.png)\n\n{wide}\n\n<b>raw</b>"
    (folder / "README.md").write_text(f"# Title\n\n## {heading}\n\n{text}\n\n## Else\n\nnot this\n")


def write_comparison(root: Path) -> None:
    """What the gallery and the plots of the comparison are made of: three faces, two methods and an anchor."""
    ids = ("x-0", "x-1", HOSTILE)
    images = datasets.load_ids("faces-smile", ids, Path("data")).images
    f, source, target = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2)), [0, 1, 0], [1, 0, 1]
    target = torch.tensor(target)
    paths = torch.stack([images, (images + 0.2).clamp(0, 1)], 1)
    batch = finish(images, paths, target, classifier=f, strengths=[0.5, 1.0])
    shard = Shard(
        world="faces-smile", starts="pairs", classifier="l2at", seed=0, ids=ids, source=torch.tensor(source),
        target=target, accuracy=1.0, source_prediction=torch.tensor(source), interventions={}, traces={},
        batches={"svce": batch, HOSTILE: batch, "identity": batch},
    )  # fmt: skip
    folder = root / "work" / SCALE / "comparison" / "batches"
    folder.mkdir(parents=True)
    write_shards([shard], folder / "all-0.safetensors")
    rows = pd.DataFrame(
        {"world": "faces-smile", "classifier": "l2at", "seed": 0, "method": name, "image": image, "strength": strength,
         "oracle_valid": float(k % 2)}
        for name in shard.batches for k, image in enumerate(ids) for strength in (0.5, 1.0)
    )  # fmt: skip
    rows.to_parquet(root / "results" / SCALE / "comparison" / "rows.parquet")
    outcomes = pd.DataFrame({"world": "faces-smile", "classifier": "l2at", "method": ["identity", "svce", HOSTILE]})
    for metric in ("effect", "honest"):
        means = {metric: [0.0, 0.4, np.nan], f"{metric}_low": [0.0, 0.3, np.nan], f"{metric}_high": [0.0, 0.5, np.nan]}
        outcomes = outcomes.assign(**means)
    outcomes = outcomes.assign(n=3, mark=["", "", "B of its own classifier"])
    outcomes.to_csv(root / "results" / SCALE / "comparison" / "tables" / "outcomes.csv", index=False)


def write_run(root: Path) -> Path:
    """A run of all parts below `root`."""
    for part in PARTS:
        write_part(root, part)
        write_readme(root, part)
    write_comparison(root)
    for folder in ("results", "figures"):
        for path in (root / folder / SCALE).rglob("*.*"):
            write_record(root, path)
    return root


def report_of(root: Path, out: Path) -> Path:
    """The report of such a run; the path of its front page."""
    from comparison.report import site

    files = [root / "work" / SCALE / "comparison" / "batches" / "all-0.safetensors"]
    return site.build(root, SCALE, out, Path("data"), files, 0.9)


def whole_report(root: Path) -> Path:
    """The folder of the report of a whole run below `root`."""
    return report_of(write_run(root), root / "results" / SCALE / "report").parent
