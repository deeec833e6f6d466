"""Job: the report of a scale, static pages that need no network.

python -m comparison.report.site --scale cpu --out results/cpu/report

It shows what is there: a paper that was not run, or was run by another recipe, is named as such, and the rest is built.
"""

import argparse
import math
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from PIL import Image

from common.batches import read_shards
from common.errors import VceError, one_line_errors
from common.files import ROOT, write_atomic
from common.parts import VERDICTS
from common.progress import Progress
from common.scales import load_scale
from comparison.entries import ANCHORS
from comparison.explain import STARTS
from comparison.measure import merged
from comparison.report.collect import Part, parts
from comparison.report.folders import check_ours, fresh_beside, put_in_place
from comparison.report.gallery import sheets

WIDEST = 1500  # pixels of a figure
FRONT = "index.html"
MOST_ROWS = 100  # of a table that a page shows
OUTCOMES = {"effect": "A: judges' gain at equal change", "honest": "B: oracle-valid at first own success"}


def environment() -> Environment:
    """Templates in which everything is text unless it says otherwise."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"number": number, "markdown": markdown, "place": place}
    found.globals |= {"VERDICTS": VERDICTS, "MOST_ROWS": MOST_ROWS, "scale_of": scale_of}
    return found


def number(value: object) -> str:
    """A cell of a table: three significant digits of what is no whole number, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3g}".replace("-", "−")
    return str(int(value)) if isinstance(value, float) and abs(value) < 1e15 else str(value)


def markdown(text: str) -> Markup:
    """Markdown of this repository as HTML, without raw HTML, and without links and pictures, which lead nowhere from a
    report; a wide table slides in a region of its own."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    region = '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>'
    for rule, html in {
        "link_open": "",
        "link_close": "",
        "table_open": region,
        "table_close": "</table></div>",
    }.items():
        renderer.add_render_rule(rule, lambda *_, html=html: html)
    renderer.add_render_rule("image", lambda _, tokens, place, *__: str(escape(tokens[place].content)))
    return Markup(renderer.render(text))


def scale_of(values: list[float]) -> tuple[float, float]:
    """Ends of an axis that holds all values and 0."""
    sound = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(0.0, *sound, 0.0), max(0.0, *sound, 0.0)
    return (low, high) if high > low else (low - 1, high + 1)


def place(value: float, ends: tuple[float, float]) -> float:
    """Where a value lies on an axis, 0 to 100."""
    return round(100 * (value - ends[0]) / (ends[1] - ends[0]), 2)


def outcome_plots(part: Part) -> list[dict]:
    """For every world, classifier and outcome the methods with their intervals; what a method cannot do has none.
    Raises KeyError for a table of outcomes without its columns."""
    table = part.table("outcomes")
    if table is None:
        return []
    plots = []
    for (world, classifier), mine in table.frame.groupby(["world", "classifier"], sort=False):
        lines = mine.set_index("method").loc[sorted(mine["method"], key=lambda name: name in ANCHORS)]
        for metric, title in OUTCOMES.items():
            columns = {"mean": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
            rows = [
                {
                    "method": name,
                    "trivial": name in ANCHORS,
                    "mark": ("the right answer" if name == "twin" else "trivial")
                    if name in ANCHORS
                    else line["mark"]
                    if pd.notna(line["mark"])
                    else "",
                    "n": line["n"],
                    **{key: None if pd.isna(line[c]) else round(float(line[c]), 6) for key, c in columns.items()},
                }
                for name, line in lines.iterrows()
            ]
            plots.append(
                {"id": f"{metric}-{world}-{classifier}", "title": f"{title}, {world}, {classifier}", "rows": rows}
            )
    return plots


def shrunk(part: Part, out: Path, progress: Progress) -> set[str]:
    """The figures of a part as small files beside the pages; the names of those that could be read."""
    out.mkdir(exist_ok=True)
    found = set()
    for figure in part.figures:
        progress.advance()
        if figure.path is None:
            continue
        try:
            with Image.open(figure.path) as image:
                shown = image.convert("RGB")
        except (OSError, SyntaxError):  # what Pillow says of a damaged file
            continue
        shown.thumbnail((WIDEST, 100 * WIDEST))
        shown.save(out / f"{part.name}-{figure.name}.webp", "WEBP", quality=80, method=2)
        found.add(figure.name)
    return found


def batches(root: Path, scale: str) -> list[Path]:
    """The files of what the methods of the comparison made in the first training seed."""
    config = load_scale(scale)
    jobs = [job[0].replace("-", "_") for job in config["comparison"]["jobs"]]
    return [root / f"work/{scale}/comparison/batches/{job}-{config['seeds'][0]}.safetensors" for job in jobs]


def gallery(root: Path, scale: str, files: list[Path], own: set[str], data: Path, out: Path) -> tuple[list[dict], str]:
    """What `gallery.sheets` says of the pictures, or why there are none."""
    try:
        out.mkdir()
        shards = merged([shard for path in files for shard in read_shards(path) if shard.starts == STARTS])
        rows = pd.read_parquet(root / "results" / scale / "comparison" / "rows.parquet")
        return sheets(shards, rows, own, data, out), ""
    except (VceError, OSError, ValueError, KeyError) as error:
        return [], f"the pictures cannot be shown: {' '.join(str(error).split())[:300]}"


def own_methods(part: Part) -> set[str]:
    """Methods of the comparison that answer for a classifier of their own."""
    table = part.table("outcomes")
    if table is None or "mark" not in table.frame:
        return set()
    return set(table.frame.loc[table.frame["mark"].fillna("").str.contains("own classifier"), "method"])


def build(root: Path, scale: str, out: Path, data: Path, files: list[Path], level: float) -> Path:
    """Write the report into a new folder and put it in the place of the old one; the path of its front page. `files`
    are the batches of the gallery, `level` the own confidence of a success. Raises VceError for a folder that holds
    anything else."""
    out = out.resolve()
    check_ours(out)
    fresh, found, pages = fresh_beside(out), parts(root, scale), environment()
    comparison = found[-1]
    total = sum(len(part.figures) for part in found) + len(found) + 1
    with Progress("report", total=total, unit="pictures and pages") as progress:
        images, problem = [], comparison.problem
        if not problem:
            images, problem = gallery(root, scale, files, own_methods(comparison), data, fresh / "gallery")
        progress.advance()
        shared = {"scale": scale, "parts": found, "images": images, "no_images": problem, "level": level}
        shared["drawn"] = {part.name: shrunk(part, fresh / "figures", progress) for part in found}
        for part in found:
            try:
                plots, unread = outcome_plots(part), ""
            except KeyError as error:
                plots, unread = [], f"outcomes.csv has no column {error}; delete it and run snakemake again"
            text = pages.get_template("part.html").render(**shared, part=part, plots=plots, unread=unread)
            write_atomic(fresh / f"{part.name}.html", text)
            progress.advance()
        for name in (FRONT, "gallery.html"):
            write_atomic(fresh / name, pages.get_template(name).render(**shared, part=None))
    put_in_place(fresh, out)
    return out / FRONT


def build_scale(scale: str, out: Path | None, data: Path) -> Path:
    """The report of a scale of this repository. Raises VceError for a scale that there is not."""
    level = load_scale(scale)["match_at"]
    return build(ROOT, scale, out or ROOT / "results" / scale / "report", data, batches(ROOT, scale), level)


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the report")
    args = parser.parse_args()
    print(build_scale(args.scale, args.out, args.data))


if __name__ == "__main__":
    main()
