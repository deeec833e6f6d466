"""Write the verdicts of reference/cpu/*.json into README.md, between its two markers.

python scripts/verdict_table.py
"""

import json
from pathlib import Path

from common.files import ROOT

START, END = "<!-- verdicts -->\n", "<!-- /verdicts -->"


def verdict_table(reference: Path) -> str:
    """The verdicts of one reference file as Markdown; an interval is that of the claim's first test."""
    report = json.loads(reference.read_text())
    protocol, lines = report["protocol"], []
    for name, claim in report["claims"].items():
        measured = "not measured"
        if claim["measured"] is not None:
            measured = f"{claim['measured']:.3g} [{claim['low']:.3g}, {claim['high']:.3g}], n = {claim['n']}"
        note = f"<br><sub>{claim['note']}</sub>" if claim["note"] else ""
        lines.append(
            f"| {name} | {claim['statement']}{note} | **{claim['verdict']}** | {measured} | {claim['paper']} |"
        )
    head = [
        f"**{reference.stem}**, {protocol['scale']} scale: {protocol['pairs']} pairs, {protocol['seeds']} training "
        f"seeds, recipe `{protocol['recipe']}`",
        "",
        "| | claim | verdict | first test: mean [95 %] | the paper's value |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"


def with_verdicts(readme: str, root: Path = ROOT) -> str:
    """`readme` with the text between its markers made anew."""
    before, rest = readme.split(START)
    tables = [verdict_table(path) for path in sorted((root / "reference" / "cpu").glob("*.json"))]
    return before + START + "\n".join(tables) + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_verdicts(path.read_text()))
