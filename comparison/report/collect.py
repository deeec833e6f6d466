"""What a finished, half-finished or foreign run has to show: verdicts, tables, figures, costs, and what is wrong."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml

from comparison.report.provenance import Made, made

PARTS = {
    "svce": "Sparse visual counterfactual explanations",
    "clarity": "Clarity: a VAE and an ensemble in its latent space",
    "disc": "DISC: deep inversion with an untrained prior",
    "fido": "FIDO: saliency by generative in-fill",
    "contrastive": "Contrastive counterfactuals: necessity and sufficiency",
    "comparison": "Side by side",
}
VERDICTS = ("supported", "partly", "contradicted", "inconclusive", "not tested")
CAPTIONS = Path(__file__).with_name("captions.yaml")


@dataclass(frozen=True)
class Table:
    """A table by its file name; None for one that cannot be read."""

    name: str
    frame: pd.DataFrame | None
    made: Made | None


@dataclass(frozen=True)
class Figure:
    """A picture that lies at `path`, with what it shows and what made it."""

    name: str
    path: Path
    caption: str
    made: Made | None


@dataclass(frozen=True)
class Part:
    """A paper or the comparison. `problem` says why there are no verdicts to show; `warning` what keeps the numbers
    from being compared with the committed ones; `moved` claims whose verdict is another one there."""

    name: str
    title: str
    protocol: dict = field(default_factory=dict)
    claims: dict[str, dict] = field(default_factory=dict)
    problem: str = ""
    warning: str = ""
    moved: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    cost: pd.DataFrame | None = None
    deviations: str = ""

    def table(self, name: str) -> pd.DataFrame | None:
        """The table of this name, if it is there and can be read."""
        return next((table.frame for table in self.tables if table.name == name), None)

    def counts(self) -> dict[str, int]:
        """How many claims have each verdict."""
        found = [claim["verdict"] for claim in self.claims.values()]
        return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}


def parts(root: Path, scale: str) -> list[Part]:
    """All papers and the comparison, as far as the scale's results below `root` go."""
    captions = yaml.safe_load(CAPTIONS.read_text())
    return [_part(root, scale, name, title, captions[name]) for name, title in PARTS.items()]


def _part(root: Path, scale: str, name: str, title: str, captions: dict[str, str]) -> Part:
    report, problem = _report(root / "results" / scale / name / "claims.json", scale)
    figures = tuple(
        Figure(figure, path, caption, made(path, root))
        for figure, caption in captions.items()
        for path in [root / "figures" / scale / name / f"{figure}.png"]
        if path.is_file()
    )
    if problem:
        return Part(name, title, problem=problem, figures=figures, deviations=deviations(root, name))
    warning, moved = _beside_reference(root / "reference" / scale / f"{name}.json", report)
    files = sorted((root / "results" / scale / name / "tables").glob("*.csv"))
    return Part(
        name,
        title,
        protocol=report["protocol"],
        claims=dict(sorted(report["claims"].items(), key=lambda item: (len(item[0]), item[0]))),
        warning=warning,
        moved=moved,
        tables=tuple(Table(path.stem, _read(path), made(path, root)) for path in files),
        figures=figures,
        cost=_costs(root / "work" / scale / name / "cost.parquet"),
        deviations=deviations(root, name),
    )


def _report(path: Path, scale: str) -> tuple[dict, str]:
    """The content of a claims.json, or why it cannot be shown."""
    if not path.is_file():
        return {}, f"not run at the {scale} scale yet: snakemake all --config scale={scale}"
    try:
        report = json.loads(path.read_text())
        found = report["protocol"]["scale"], report["protocol"]["recipe"]
        complete = all({"verdict", "statement"} <= set(claim) for claim in report["claims"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"claims.json cannot be read ({type(error).__name__}); delete it and run snakemake again"
    if found[0] != scale:
        return {}, f"claims.json is of the {found[0]} scale, not of {scale}; delete it and run snakemake again"
    return (report, "") if complete else ({}, "claims.json lacks verdicts; delete it and run snakemake again")


def _beside_reference(path: Path, report: dict) -> tuple[str, tuple[str, ...]]:
    """What keeps a run from being compared with the committed one, and the claims whose verdict is another."""
    if not path.is_file():
        return "", ()
    reference = json.loads(path.read_text())
    ours, theirs = report["protocol"]["recipe"], reference["protocol"]["recipe"]
    if ours != theirs:
        return f"made by another recipe ({ours}) than the committed run ({theirs}): the two are not comparable", ()
    verdicts = {name: claim["verdict"] for name, claim in reference["claims"].items()}
    return "", tuple(name for name, claim in report["claims"].items() if verdicts.get(name) != claim["verdict"])


def _read(path: Path) -> pd.DataFrame | None:
    try:
        return pd.read_csv(path)
    except (ValueError, OSError):
        return None


def _costs(path: Path) -> pd.DataFrame | None:
    """By method (of contrastive by system): cells, seconds and gradient evaluations in all, median overhead."""
    try:
        cells = pd.read_parquet(path)
        grouped = cells.groupby("method" if "method" in cells else "system")
        found = grouped[["seconds", "evaluations"]].sum().assign(overhead=grouped["overhead"].median())
        return found.assign(cells=grouped.size()).rename_axis("method").reset_index()
    except (OSError, ValueError, KeyError):
        return None


def deviations(root: Path, name: str) -> str:
    """The Markdown of a README that says where it deviates; of the comparison, what its numbers do not mean."""
    folder = root / name if name == "comparison" else root / "papers" / name
    wanted = "## What the numbers do not mean" if name == "comparison" else "## Deviations"
    try:
        lines = (folder / "README.md").read_text().splitlines()
    except OSError:
        return ""
    inside: list[str] = []
    for line in lines:
        if line.startswith("## "):
            if inside:
                break
            if line.startswith(wanted):
                inside.append("")
                continue
        if inside:
            inside.append(line)
    return "\n".join(inside).strip()
