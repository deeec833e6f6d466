"""Job: the report of a scale, static pages that need no network.

python -m comparison.report.site --scale cpu --out results/cpu/report

It shows what is there: a paper that was not run, or was run by another recipe, is named as such, and the rest is built.
"""

import argparse
import math
import shutil
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image

from common.batches import Shard, read_shards
from common.errors import one_line_errors
from common.files import ROOT, write_atomic
from common.progress import Progress
from comparison.entries import ANCHORS
from comparison.explain import STARTS
from comparison.measure import merged
from comparison.report.collect import VERDICTS, Part, parts
from comparison.report.gallery import sheets

WIDEST = 1500  # pixels of a figure
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
    """Markdown of this repository as HTML, without raw HTML and without links, which lead nowhere from a report."""
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    for rule in ("link_open", "link_close"):
        renderer.add_render_rule(rule, lambda *_: "")
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
    """For every world, classifier and outcome the methods with their intervals; what a method cannot do has none."""
    table = part.table("outcomes")
    if table is None:
        return []
    plots = []
    for (world, classifier), mine in table.groupby(["world", "classifier"], sort=False):
        order = [name for name in mine["method"] if name not in ANCHORS] + [
            name for name in mine["method"] if name in ANCHORS
        ]
        lines = mine.set_index("method").loc[order]
        for metric, title in OUTCOMES.items():
            rows = [
                {
                    "method": name, "trivial": name in ANCHORS, "mark": line["mark"] if pd.notna(line["mark"]) else "",
                    "n": line["n"], **{key: None if pd.isna(line[c]) else round(float(line[c]), 6) for key, c in
                    {"mean": metric, "low": f"{metric}_low", "high": f"{metric}_high"}.items()},
                }
                for name, line in lines.iterrows()
            ]  # fmt: skip
            plots.append(
                {"id": f"{metric}-{world}-{classifier}", "title": f"{title}, {world}, {classifier}", "rows": rows}
            )
    return plots


def shrunk(part: Part, out: Path, progress: Progress) -> None:
    """The figures of a part as small files beside the pages."""
    out.mkdir(exist_ok=True)
    for figure in part.figures:
        with Image.open(figure.path) as image:
            shown = image.convert("RGB")
            shown.thumbnail((WIDEST, 100 * WIDEST))
            shown.save(out / f"{part.name}-{figure.name}.webp", "WEBP", quality=80, method=2)
        progress.advance()


def compared(root: Path, scale: str) -> list[Shard]:
    """What the methods of the comparison made in the first training seed; nothing where they were not run."""
    files = sorted((root / "work" / scale / "comparison" / "batches").glob("*.safetensors"))
    first = min((path.stem.rpartition("-")[2] for path in files), default="")
    mine = [path for path in files if path.stem.endswith(f"-{first}")]
    return merged([shard for path in mine for shard in read_shards(path) if shard.starts == STARTS])


def own_methods(part: Part) -> set[str]:
    """Methods of the comparison that answer for a classifier of their own."""
    table = part.table("outcomes")
    if table is None:
        return set()
    return set(table.loc[table["mark"].fillna("").str.contains("own classifier"), "method"])


def build(root: Path, scale: str, out: Path, data: Path) -> Path:
    """Write the report into a new folder and put it in the place of the old one; the path of its front page."""
    fresh = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    found, pages = parts(root, scale), environment()
    comparison = found[-1]
    rows = root / "results" / scale / "comparison" / "rows.parquet"
    shards = compared(root, scale) if rows.is_file() and not comparison.problem else []
    figures = sum(len(part.figures) for part in found)
    with Progress("report", total=figures + len(found) + len(shards), unit="pictures and pages") as progress:
        images = []
        if shards:
            (fresh / "gallery").mkdir()
            images = sheets(shards, pd.read_parquet(rows), own_methods(comparison), data, fresh / "gallery")
            progress.advance(len(shards))
        shared = {"scale": scale, "parts": found, "images": images}
        for part in found:
            shrunk(part, fresh / "figures", progress)
            text = pages.get_template("part.html").render(**shared, part=part, plots=outcome_plots(part))
            write_atomic(fresh / f"{part.name}.html", text)
            progress.advance()
        for name in ("index", "gallery"):
            write_atomic(fresh / f"{name}.html", pages.get_template(f"{name}.html").render(**shared, part=None))
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    return out / "index.html"


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the report")
    args = parser.parse_args()
    print(build(ROOT, args.scale, args.out, args.data))


if __name__ == "__main__":
    main()
