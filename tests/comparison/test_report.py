"""The report of a run that is whole, missing, damaged, of another scale or recipe; hostile names are text."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from jobs import failing
from PIL import Image
from run_of_nothing import HOSTILE, SCALE, report_of, whole_report, write_comparison, write_part

from common.errors import VceError
from common.files import ROOT
from common.parts import PARTS
from comparison.report import collect, provenance, site
from comparison.report.collect import CAPTIONS


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return whole_report(tmp_path_factory.mktemp("run"))


def test_every_part_has_a_page_with_all_claims_and_figures(report):
    for part in PARTS:
        page = Page(report / f"{part}.html")
        assert {"C1", "C2", "C10"} <= {attributes.get("id") for _, attributes in page.tags}
        shown = {attributes["src"] for attributes in page.all("img")}
        assert shown == {f"figures/{part}-{name}.webp" for name in yaml.safe_load(CAPTIONS.read_text())[part]}
        assert all((report / source).is_file() for source in shown)
        assert "−0.5 [−0.6, −0.4], n = 40" in page.text and "not measured" in page.text


def test_the_front_page_has_every_verdict_and_links_to_it(report):
    links = {attributes.get("href") for attributes in Page(report / "index.html").all("a")}
    assert {f"{part}.html#{claim}" for part in PARTS for claim in ("C1", "C2", "C10")} <= links


def test_every_link_and_picture_leads_somewhere(report):
    for path in report.glob("*.html"):
        page = Page(path)
        for attributes in page.all("a"):
            file, _, place = attributes["href"].partition("#")
            there = Page(report / (file or path.name))
            assert not place or place in {found.get("id") for _, found in there.tags}, (path.name, attributes)
        assert all(attributes["alt"] for attributes in page.all("img"))


@pytest.mark.parametrize("page", ["index", "gallery", "comparison", "svce"])
def test_hostile_names_are_text(report, page):
    found = Page(report / f"{page}.html")
    assert len(found.all("script")) == (3 if page == "gallery" else 1)
    assert "<script>document" not in (report / f"{page}.html").read_text()
    if page != "gallery":
        assert HOSTILE.split("\u202e")[0] in found.text or page == "index"


def test_a_page_asks_for_nothing_from_the_network(report):
    for path in report.glob("*.html"):
        text = path.read_text()
        assert "http://" not in text and "https://" not in text and "default-src 'none'" in text
        assert all(attributes["src"].startswith("figures/") for attributes in Page(path).all("img"))


def test_every_figure_table_and_verdict_says_what_made_it(report):
    for part in PARTS:
        page = Page(report / f"{part}.html")
        tables = len(list((report.parents[1] / SCALE / part / "tables").glob("*.csv")))
        figures = len(yaml.safe_load(CAPTIONS.read_text())[part])
        made = page.text.count("What made this")
        assert made == figures + tables + 1 + (part == "comparison")  # the verdicts; the plots of both outcomes
        assert "some_rule" in page.text and "papers.some.module" in page.text and "12" * 32 in page.text
        assert "Nothing is recorded of what made this table" in page.text  # of costs, in this run


def test_deviations_are_shown_without_links_and_pictures(report):
    for part in PARTS:
        text = Page(report / f"{part}.html").text
        assert "Scale. See this." in text.replace("\n", "") and "<b>raw</b>" in text and "not this" not in text


def test_the_sheet_of_an_image_holds_the_pictures_of_every_path(report):
    """Tiles are the pixels of the shard, to half a grey level; the map's largest value is white-hot."""
    data = next(line for line in (report / "gallery.html").read_text().splitlines() if 'id="data"' in line)
    images = json.loads(data.partition(">")[2].rpartition("</script>")[0])
    assert len(images) == 3 and {item["image"] for item in images} == {"x-0", "x-1", HOSTILE}
    item = images[0]
    sheet, size = np.asarray(Image.open(report / "gallery" / item["file"])), item["tile"]
    assert sheet.shape == (2 * 3 * size, 3 * size, 3)
    original, first = sheet[:size, :size], sheet[:size, size : 2 * size]
    assert np.array_equal(original, first)  # the first of the path is the image itself
    brighter = np.minimum(original.astype(float) + 51, 255)
    assert np.abs(sheet[:size, 2 * size :] - brighter).max() <= 1
    assert {method["name"]: method["own"] for method in item["methods"]} == {
        HOSTILE: True,
        "svce": False,
        "identity": False,
    }
    assert item["methods"][-1]["name"] == "identity"  # what is trivial comes last
    assert [step["judges"] for step in item["methods"][0]["path"]] in ([True, True], [False, False])


def test_what_is_missing_is_said_at_its_place_and_the_rest_is_built(tmp_path):
    write_part(tmp_path, "svce")
    write_part(tmp_path, "clarity")
    (tmp_path / "results" / SCALE / "clarity" / "claims.json").write_text("{")
    write_part(tmp_path, "disc")
    path = tmp_path / "results" / SCALE / "disc" / "claims.json"
    path.write_text(path.read_text().replace('"scale": "test"', '"scale": "cpu"'))
    write_part(tmp_path, "fido", recipe="dddd")
    (tmp_path / "reference" / SCALE).mkdir(parents=True)
    reference = json.loads((tmp_path / "results" / SCALE / "svce" / "claims.json").read_text())
    (tmp_path / "reference" / SCALE / "fido.json").write_text(json.dumps(reference))
    reference["claims"]["C2"]["verdict"] = "supported"
    (tmp_path / "reference" / SCALE / "svce.json").write_text(json.dumps(reference))
    (tmp_path / "results" / SCALE / "svce" / "tables" / "empty.csv").write_text("")
    front = report_of(tmp_path, tmp_path / "report")
    said = {part: Page(front.with_name(f"{part}.html")).text for part in PARTS}
    assert (
        "Another verdict than in the committed run: C2" in said["svce"] and "empty.csv cannot be read" in said["svce"]
    )
    assert "claims.json cannot be read" in said["clarity"] and "is of the cpu scale, not of test" in said["disc"]
    assert "another recipe (dddd) than the committed run (aaaa)" in said["fido"] and "One is more" in said["fido"]
    assert "One is more" not in said["disc"]
    for part in ("contrastive", "comparison"):
        assert "not run at the test scale yet: snakemake all --config scale=test" in said[part]
    assert "not run at the test scale" in Page(front.with_name("gallery.html")).text


def test_a_report_replaces_the_one_before_as_a_whole_and_nothing_else(tmp_path):
    write_part(tmp_path, "svce")
    out = tmp_path / "report"
    report_of(tmp_path, out)
    (out / "old.html").write_text("old")
    (out / "index.html").unlink()  # as Snakemake does before it runs a job again
    report_of(tmp_path, out)
    assert not (out / "old.html").exists() and (out / "index.html").is_file()
    for folder in (tmp_path, tmp_path / "results"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(VceError, match="holds files that are not ours"):
            report_of(tmp_path, folder)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(VceError, match="is a file"):
        report_of(tmp_path, out / "index.html")


@pytest.mark.parametrize("damage", ["claims", "outcomes", "picture", "rows", "shard", "reference", "cost"])
def test_one_damaged_file_is_named_at_its_place_and_the_rest_is_built(tmp_path, damage):
    root = tmp_path
    for part in PARTS:
        write_part(root, part)
    write_comparison(root)
    comparison = root / "results" / SCALE / "comparison"
    if damage == "claims":
        path = comparison / "claims.json"
        path.write_text(path.read_text().replace('"note"', '"remark"'))
    if damage == "outcomes":
        (comparison / "tables" / "outcomes.csv").write_text("world,classifier,method,n,mark\nw,c,m,1,x\n")
    if damage == "picture":
        (root / "figures" / SCALE / "comparison" / "audit.png").write_bytes(b"no picture")
        (root / "figures" / SCALE / "comparison" / "paths.png").unlink()
    if damage == "rows":
        (comparison / "rows.parquet").write_bytes(b"no table")
    if damage == "shard":
        (root / "work" / SCALE / "comparison" / "batches" / "all-0.safetensors").write_bytes(b"no tensors")
    if damage == "reference":
        (root / "reference" / SCALE).mkdir(parents=True)
        (root / "reference" / SCALE / "comparison.json").write_text("{}")
    if damage == "cost":
        (root / "work" / SCALE / "comparison" / "cost.parquet").unlink()
    front = report_of(root, root / "report")
    said = Page(front.with_name("comparison.html")).text + Page(front.with_name("gallery.html")).text
    expected = {
        "claims": "claims.json lacks what a verdict is made of", "outcomes": "outcomes.csv has no column 'effect'",
        "picture": "the picture cannot be read", "rows": "the pictures cannot be shown",
        "shard": "the pictures cannot be shown", "reference": "the committed run cannot be read",
        "cost": "cost.parquet is not there",
    }  # fmt: skip
    assert expected[damage] in said and ("not drawn yet" in said) == (damage == "picture")
    assert "One is more than none" in Page(front.with_name("svce.html")).text


def test_a_name_that_looks_like_nothing_is_a_name(report):
    assert '<td class="words">NA</td>' in (report / "svce.html").read_text()


def test_the_same_results_give_the_same_bytes(report, tmp_path):
    again = report_of(report.parents[2], tmp_path / "again").parent
    files = sorted(path.relative_to(report) for path in report.rglob("*") if path.is_file())
    assert len(files) > 60
    assert all((report / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_every_figure_of_the_workflow_has_a_caption():
    """None is drawn without one, and none names a figure that is not drawn."""
    captions = yaml.safe_load(CAPTIONS.read_text())
    assert list(captions) == list(PARTS)
    command = [Path(sys.executable).with_name("snakemake"), "all", "--summary", "--config", "scale=cpu"]
    summary = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    drawn = set(re.findall(r"^figures/cpu/(\w+)/([^\t]+)\.png\t", summary, re.MULTILINE))
    assert drawn == {(part, name) for part, names in captions.items() for name in names}
    assert all(text and not text.endswith(".") for part in captions.values() for text in part.values())


def test_deviations_come_from_the_readmes():
    for part in PARTS:
        text = collect.deviations(ROOT, part)
        assert len(text) > 500 and "\n## " not in text, part


def test_markdown_has_no_links_and_no_html():
    shown = site.markdown("see [this](papers/x.md), <b>bold</b>\n\n1. `code`")
    assert "<a" not in shown and "this" in shown and "&lt;b&gt;" in shown and "<code>code</code>" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (float("nan"), "–"), (-0.12345, "−0.123"), (3.0, "3"), (12, "12"), (1e-15, "1e−15"), ("a", "a")],
)
def test_numbers_are_short(value, shown):
    assert site.number(value) == shown


def test_an_axis_holds_all_values_and_zero():
    assert site.scale_of([0.2, None, 0.5]) == (0.0, 0.5) and site.scale_of([]) == (-1.0, 1.0)
    assert site.place(0.0, (-1.0, 1.0)) == 50 and site.place(0.5, (0.0, 0.5)) == 100


def test_what_made_a_file_is_snakemakes_own_record(tmp_path):
    path = tmp_path / "figures/cpu/a.png"
    record = {
        "rule": "svce_grids", "shellcmd": "python -m papers.svce.grids --out figures 2> >(tee logs/a.log >&2)",
        "input": ["b", "a"], "input_checksums": {"a": "sha256:12"},
    }  # fmt: skip
    folder = tmp_path / provenance.RECORDS
    folder.mkdir(parents=True)
    file = folder / base64.urlsafe_b64encode(b"figures/cpu/a.png").decode()
    file.write_text(json.dumps(record))
    found = provenance.made(path, tmp_path)
    assert (found.rule, found.module) == ("svce_grids", "papers.svce.grids")
    assert found.command == "python -m papers.svce.grids --out figures" and found.inputs == {"a": "12", "b": ""}
    file.write_text("{")
    assert provenance.made(path, tmp_path) is None and provenance.made(tmp_path / "none", tmp_path) is None


def test_an_unknown_scale_is_one_line(monkeypatch, capsys):
    from vce import cli

    said = failing(monkeypatch, capsys, cli, "report", "--scale", "nowhere")
    assert "nowhere" in said
