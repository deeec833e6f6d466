"""Write the verdicts of reference/cpu/*.json into README.md, at a glance, into the README of each paper and of the
comparison, in full, and all of them into docs/replication.md, a report to print (pandoc docs/replication.md -o it.pdf).

python scripts/verdict_table.py
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

from common.files import ROOT
from common.parts import PARTS, VERDICTS, in_order

PAPERS = [name for name in PARTS if name != "comparison"]  # in the order of CITATION.cff
PREAMBLE = (
    "Verdicts of the committed run. *Ours* is the first test of a claim: mean, 95 % interval, n. A paper's own",
    "value is `unknown` where its specification has none; the two were measured on other data, and are not comparable",
    "as numbers.",
)
START, END = "<!-- verdicts -->\n", "<!-- /verdicts -->"


def folder(part: str) -> str:
    """Where a paper lives, or the comparison."""
    return part if part == "comparison" else f"papers/{part}"


def glance(reports: dict[str, dict]) -> str:
    """How many claims of each part have each verdict, as one Markdown table."""
    lines = []
    for part, report in reports.items():
        found = [claim["verdict"] for claim in report["claims"].values()]
        counts = " | ".join(str(found.count(verdict) or "") for verdict in VERDICTS)
        lines.append(f"| [{part}]({folder(part)}/README.md#verdicts) | {counts} | {head(report)} |")
    columns = [f"| | {' | '.join(VERDICTS)} | committed run |", "|---|" + "---|" * (len(VERDICTS) + 1)]
    return "\n".join([*columns, *lines]) + "\n"


def in_full(report: dict) -> str:
    """The same with each claim's first test, its failed tests and the paper's value."""
    lines = []
    for name, claim in in_order(report["claims"]).items():
        note = f"<br><sub>{claim['note']}</sub>" if claim["note"] else ""
        lines.append(
            f"| {name} | {claim['statement']}{note} | **{claim['verdict']}** | {measured(claim)} | {claim['paper']} |"
        )
    columns = ["| | claim | verdict | first test: mean [95 %] | the paper's value |", "|---|---|---|---|---|"]
    return "\n".join([f"Committed run: {head(report)}.", "", *columns, *lines]) + "\n"


def head(report: dict) -> str:
    """What the numbers were made with."""
    protocol = report["protocol"]
    made = f"{protocol['pairs']} pairs, {protocol['seeds']} training seeds"
    return f"{protocol['scale']} scale: {made}, recipe `{protocol['recipe']}`"


def with_block(text: str, block: str) -> str:
    """`text` with what stands between its markers made anew."""
    before, rest = text.split(START)
    return before + START + block + END + rest.split(END)[1]


def replication(reports: dict[str, dict], citation: dict) -> str:
    """A report of its own: a table per paper of what it claims, what it says it measured, and what was measured
    here."""
    papers = dict(zip(PAPERS, citation["references"], strict=True))
    title, author = json.dumps(citation["title"]), json.dumps(citation["authors"][0]["name"])
    lines = ["---", f"title: {title}", f"author: {author}", "geometry: margin=2cm", "---", "", *PREAMBLE, ""]
    for part, report in reports.items():
        name = papers[part]["title"] if part in papers else "The methods side by side"
        columns = ["| claim | paper | ours | verdict |", "|:------------------|:-------|:---------|:-----|"]
        rows = [
            f"| {name}. {claim['statement']} | {claim['paper']} | {measured(claim)} | {claim['verdict']} |"
            for name, claim in in_order(report["claims"]).items()
        ]
        lines += [f"## {name}", "", f"{head(report)}.", "", *columns, *rows, ""]
    return "\n".join(lines)


def measured(claim: dict) -> str:
    """Mean, interval and n of a claim's first test."""
    if claim["measured"] is None:
        return "not measured"
    return f"{claim['measured']:.3g} [{claim['low']:.3g}, {claim['high']:.3g}], n = {claim['n']}"


def pages(root: Path = ROOT) -> dict[Path, str]:
    """The text of every page that carries verdicts, by its path."""
    reports = {part: json.loads((root / "reference" / "cpu" / f"{part}.json").read_text()) for part in PARTS}
    for part, report in reports.items():
        if report["protocol"]["scale"] != "cpu":
            sys.exit(f"error: reference/cpu/{part}.json is of the {report['protocol']['scale']} scale; run cpu again")
    blocks = {root / "README.md": glance(reports)}
    blocks |= {root / folder(part) / "README.md": in_full(report) for part, report in reports.items()}
    found = {path: with_block(path.read_text(), block) for path, block in blocks.items()}
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    return found | {root / "docs" / "replication.md": replication(reports, citation)}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path, text in pages().items():
        path.write_text(text)
