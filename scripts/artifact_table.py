"""Write docs/artifacts.md: licence, source and hash of every file from outside.

python scripts/artifact_table.py
"""

import argparse
from pathlib import Path

from common.data import registry
from common.files import ROOT

HEAD = """# Files from outside

Every file that this repository did not make, as `data/NAME.dvc` pins it. None is in git; `snakemake data` fetches and
verifies them.

| file | bytes | licence | from | sha256 |
|---|---|---|---|---|
"""


def page(root: Path = ROOT) -> str:
    """The table of all artifacts below `root`."""
    lines = []
    for name in registry.names(root):
        item = registry.read(name, root)
        source = f"`{item.source}`, {item.member}" if item.source else item.url or "unknown"
        lines.append(f"| {name} | {item.size:,} | {item.license} | {source} | `{item.sha256}` |")
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    (ROOT / "docs" / "artifacts.md").write_text(page())
