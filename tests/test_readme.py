"""What README.md promises is there: files, commands, scales; no number was forgotten."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "comparison/README.md",
    ROOT / "docs/MEASUREMENT.md",
    *ROOT.glob("papers/*/README.md"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_picture_of_a_page_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_number_was_forgotten(page):
    assert not re.findall(r"\b[A-Z]+_(?:TIME|LINE|BLOCK)\b|\bTODO\b|\bTBD\b", page.read_text())


def test_scales_that_can_be_verified_are_committed_and_so_are_the_curves_of_dvc():
    text = (ROOT / "README.md").read_text() + (ROOT / "vce/cli.py").read_text()
    for scale in {"cpu", *re.findall(r"vce verify --scale (\w+)", text)}:
        assert len(list((ROOT / "reference" / scale).glob("*.json"))) == 6
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    assert len(plots) == 6 and all((ROOT / path).is_file() for plot in plots for path in plot)
