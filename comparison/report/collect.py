"""What a finished, half-finished or foreign run has to show: verdicts, tables, figures, costs, and what is wrong."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml

from common.parts import PARTS, VERDICTS, in_order
from comparison.report.provenance import Made, made

# what the pages read of every claim and of its protocol
CLAIM = {"statement", "verdict", "where", "paper", "note", "measured", "low", "high", "n"}
PROTOCOL = {"scale", "recipe", "rules", "rows", "pairs", "seeds"}
CAPTIONS = Path(__file__).with_name("captions.yaml")


@dataclass(frozen=True)
class Table:
    """A table by its file name; None for one that cannot be read."""

    name: str
    frame: pd.DataFrame | None
    made: Made | None


@dataclass(frozen=True)
class Figure:
    """A picture that lies at `path`, or none that was not drawn yet, with what it shows and what made it."""

    name: str
    path: Path | None
    caption: str
    made: Made | None


@dataclass(frozen=True)
class Part:
    """A paper or the comparison. `problem` says why there are no verdicts to show; `warning` what keeps the numbers
    from being compared with the committed ones; `moved` claims whose verdict is another one there; `made` what made
    the verdicts."""

    name: str
    title: str
    protocol: dict = field(default_factory=dict)
    claims: dict[str, dict] = field(default_factory=dict)
    problem: str = ""
    warning: str = ""
    moved: tuple[str, ...] = ()
    made: Made | None = None
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    cost: Table | None = None
    deviations: str = ""

    def table(self, name: str) -> Table | None:
        """The table of this name, if it is there and can be read."""
        return next((table for table in self.tables if table.name == name and table.frame is not None), None)

    def first_tests(self) -> dict[str, str]:
        """By claim the name and the rule of the test whose number is shown, as far as the table of tests has them."""
        table = self.table("tests")
        if table is None or not {"claim", "test", "role", "rule"} <= set(table.frame):
            return {}
        first = table.frame[table.frame["role"] == "primary"].drop_duplicates("claim")
        return {line.claim: f"{line.test}: {line.rule}" for line in first.itertuples()}

    def counts(self) -> dict[str, int]:
        """How many claims have each verdict."""
        found = [claim["verdict"] for claim in self.claims.values()]
        return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}


def parts(root: Path, scale: str) -> list[Part]:
    """All papers and the comparison, as far as the scale's results below `root` go."""
    captions = yaml.safe_load(CAPTIONS.read_text())
    return [_part(root, scale, name, title, captions[name]) for name, title in PARTS.items()]


def _part(root: Path, scale: str, name: str, title: str, captions: dict[str, str]) -> Part:
    claims, work = root / "results" / scale / name / "claims.json", root / "work" / scale / name
    report, problem = _report(claims, scale)
    about = {"deviations": deviations(root, name), "figures": _figures(root, scale, name, captions)}
    if problem:
        return Part(name, title, problem=problem, **about)
    warning, moved = _beside_reference(root / "reference" / scale / f"{name}.json", report)
    files = sorted(path for path in claims.parent.glob("tables/*.csv") if not path.name.startswith("."))
    return Part(
        name,
        title,
        protocol=report["protocol"],
        claims=in_order(report["claims"]),
        warning=warning,
        moved=moved,
        made=made(claims, root),
        tables=tuple(Table(path.stem, _read(path), made(path, root)) for path in files),
        cost=Table("cost", _costs(work / "cost.parquet"), made(work / "cost.parquet", root)),
        **about,
    )


def _figures(root: Path, scale: str, name: str, captions: dict[str, str]) -> tuple[Figure, ...]:
    places = {figure: root / "figures" / scale / name / f"{figure}.png" for figure in captions}
    return tuple(
        Figure(figure, path if path.is_file() else None, captions[figure], made(path, root))
        for figure, path in places.items()
    )


def _report(path: Path, scale: str) -> tuple[dict, str]:
    """The content of a claims.json, or why it cannot be shown."""
    if not path.is_file():
        return {}, f"not run at the {scale} scale yet: snakemake all --config scale={scale}"
    try:
        report = json.loads(path.read_text())
        whole = set(report["protocol"]) >= PROTOCOL and all(set(claim) >= CLAIM for claim in report["claims"].values())
        found = report["protocol"].get("scale")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"claims.json cannot be read ({type(error).__name__}); delete it and run snakemake again"
    if not whole:
        return {}, "claims.json lacks what a verdict is made of; delete it and run snakemake again"
    if found != scale:
        return {}, f"claims.json is of the {found} scale, not of {scale}; delete it and run snakemake again"
    return report, ""


def _beside_reference(path: Path, report: dict) -> tuple[str, tuple[str, ...]]:
    """What keeps a run from being compared with the committed one, and the claims whose verdict is another."""
    if not path.is_file():
        return "", ()
    try:
        reference = json.loads(path.read_text())
        theirs = reference["protocol"]["recipe"]
        verdicts = {name: claim["verdict"] for name, claim in reference["claims"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"the committed run cannot be read: restore {path.parent.name}/{path.name} of reference/ from git", ()
    ours = report["protocol"]["recipe"]
    if ours != theirs:
        return f"made by another recipe ({ours}) than the committed run ({theirs}): the two are not comparable", ()
    return "", tuple(name for name, claim in report["claims"].items() if verdicts.get(name) != claim["verdict"])


def _read(path: Path) -> pd.DataFrame | None:
    """A table; a class or method called "None" or "NA" is a name, and only an empty cell is nothing."""
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
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
