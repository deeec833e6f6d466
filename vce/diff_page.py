"""The page of `vce diff`: one HTML file that holds its pictures and needs no network."""

from pathlib import Path

import torch
from jinja2 import StrictUndefined, Template

from common.metrics.perturbation import VISIBLE, pixel_change
from vce import diff_text
from vce.diff import Diff
from vce.diff_text import PATH, READING
from vce.explanation import Explanation
from vce.methods import METHODS
from vce.pictures import MAP_TITLE, map_uri, picture_uri
from vce.text import plain

SIDE = 224  # pictures are drawn about this wide, at a whole multiple of their pixels
STEM = 50  # characters of a file name that stay in the page's, which a file system limits to 255 bytes


def page_path(out: Path, image: Path, names: tuple[str, str]) -> Path:
    """Where the page of an image and two methods is written, `out/IMAGE-METHOD_A-METHOD_B.html`."""
    return out / f"{image.stem[:STEM]}-{names[0]}-{names[1]}.html"


def render(diff: Diff) -> str:
    """The page as HTML. Names reach it as escaped text; the same comparison gives the same text, seconds included."""
    text = Path(__file__).with_name("diff_page.html").read_text()
    template = Template(text, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    change = [pixel_change(explanation.delta)[explanation.chosen] for explanation in diff.explanations]
    top = max(float(each.max()) for each in change)
    record, equals = diff.explanations[0].record, (diff.change, diff.confidence)
    return template.render(
        image=plain(record["image"]),
        seed=record["seed"],
        sha256=record["image_sha256"],
        versions=record["versions"],
        sides=[_side(explanation, each, top) for explanation, each in zip(diff.explanations, change, strict=True)],
        map_title=MAP_TITLE,
        top=f"{top:.3g}",
        scale=map_uri(torch.linspace(0, 1, 256).expand(16, 256), 1),
        visible=VISIBLE,
        headings=[heading for heading, _, _ in PATH],
        warnings=diff_text.warnings(diff),
        equal=[(diff_text.equal_title(item), diff_text.equal_rows(diff, item)) for item in equals],
        read=[heading for heading, _, _ in READING],
        agreement_title=diff_text.agreement_title(diff.agreement),
        agreement=diff_text.agreement_rows(diff.agreement),
    )


def _side(explanation: Explanation, change: torch.Tensor, top: float) -> dict:
    """What the page shows of one method; `change` H×W is the map of its chosen counterfactual, `top` ends its scale."""
    height, width = explanation.image.shape[1:]
    times = max(1, round(SIDE / width))
    classifier, source, target = diff_text.sees(explanation)
    places = [diff_text.strength(explanation, place + 1) for place in range(len(explanation.path))]
    rows = [diff_text.cells(row, PATH) for row in explanation.rows]
    return {
        "method": explanation.record["method"],
        "label": METHODS[explanation.record["method"]].label,
        "classifier": classifier,
        "source": source,
        "target": target,
        "remarks": diff_text.remarks(explanation),
        "width": times * width,
        "height": times * height,
        "original": picture_uri(explanation.image),
        "reference": None if explanation.reference is None else picture_uri(explanation.reference),
        "pictures": [picture_uri(image) for image in explanation.path],
        "places": places,
        "rows": rows,
        "chosen": explanation.chosen,
        "map": map_uri(change, top),
        "most": f"{float(change.max()):.3g}",
    }
