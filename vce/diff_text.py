"""What `vce diff` says, in words and tables that the terminal and the page share."""

from collections.abc import Callable

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vce.diff import DIFFERENT, Agreement, Diff, Equal
from vce.explanation import Explanation
from vce.methods import METHODS
from vce.readings import TOP
from vce.text import plain

CHANCE = "chance: what two changes of these sizes in unrelated places have in common"
KEY = "Hoyer: sparsity of the change, 0 (even) to 1 (one value); pixels: share that changes; passes: of the classifier"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if value == 0 or value >= 5e-4 else f"{100 * value:.1g} %"


# heading, key of a row, format
SIZES: tuple[tuple[str, str, Callable], ...] = (
    ("mean |x'-x|", "mean_abs_change", "{:.4f}".format),
    ("l1", "l1", "{:.4g}".format),
    ("l2", "l2", "{:.3g}".format),
    ("Hoyer", "hoyer", "{:.3f}".format),
    ("pixels", "pixel_share", _percent),
)
PATH = (
    ("p target", "confidence", _percent),
    ("p source", "source_confidence", _percent),
    *SIZES,
    ("passes", "nfe", str),
    ("seconds", "seconds", "{:.2f}".format),
    ("status", "status", str),
)
READING = (*PATH[:2], *SIZES)


def cells(row: dict, columns: tuple[tuple[str, str, Callable], ...]) -> list[str]:
    """The values of a row under `columns`; a dash where there is no number."""
    return ["–" if row[key] is None else form(row[key]) for _, key, form in columns]


def strength(explanation: Explanation, place: int) -> str:
    """Name of a place on a path, counted from 0, its start."""
    if not place:
        return "original" if explanation.reference is None else "reconstruction"
    label = METHODS[explanation.record["method"]].label
    return f"{label} {explanation.rows[place - 1][label]:g}"


def sees(explanation: Explanation) -> tuple[str, str, str]:
    """Classifier, class that it sees in the image with its confidence, and target."""
    record = explanation.record
    source = f"{plain(record['source']['name'])} ({_percent(record['source']['confidence'])})"
    return plain(record["classifier"]), source, plain(record["target"]["name"])


def remarks(explanation: Explanation) -> list[str]:
    """What has to be known of one method to read its numbers."""
    record, said = explanation.record, []
    if METHODS[record["method"]].untargeted:
        said.append("status ok says that the class seen before is no longer predicted, whatever is predicted instead")
    if "about" in record:
        said.append(record["about"])
    if error := record.get("reconstruction_error"):
        target, numbers = error["target_confidence"], f"{error['mean_abs']:.4f} (rms {error['rms']:.4f})"
        said.append(
            f"reconstruction error: mean |reconstruction - x| is {numbers}, its p target is {_percent(target)}; the"
            " distances below count it, the difference map does not"
        )
    return said


def warnings(diff: Diff) -> list[str]:
    """What forbids to compare numbers of the two methods."""
    shapes = [explanation.image.shape for explanation in diff.explanations]
    said = [] if diff.shared else [DIFFERENT]
    if shapes[0] != shapes[1]:
        said.append("the two pictures have different sizes: l1 and l2 are not comparable, means and shares are")
    return said


def equal_title(equal: Equal) -> str:
    """Heading of a comparison at one level."""
    what = "At equal change" if equal.name == "mean_abs_change" else "At equal own confidence"
    if equal.level is None:
        return f"{what}: not read, {equal.missing}"
    ((heading, _, form),) = (column for column in READING if column[1] == equal.name)
    which = "larger" if equal.falling else "smaller"
    return (
        f"{what}: {heading} = {form(equal.level)}, the {which} of the two chosen (linear interpolation along each path)"
    )


def equal_rows(diff: Diff, equal: Equal) -> list[list[str]]:
    """Method, place on its path and the columns `READING`; a row of two cells says why a path cannot be read."""
    rows = []
    for explanation, reading in zip(diff.explanations, equal.readings, strict=False):  # no readings, no rows
        start = [explanation.record["method"]]
        if reading.values is None:
            rows.append([*start, reading.missing])
            continue
        low, high = (strength(explanation, place) for place in reading.between)
        where = high if low == high else f"{low} to {high}"
        rows.append([*start, where, *cells(reading.values, READING)])
    return rows


def agreement_rows(agreement: Agreement) -> list[tuple[str, str, str]]:
    """Measure, value and what chance gives."""
    if agreement.missing:
        return []
    value, common, chance = (
        "–" if number is None else f"{number:.3f}" for number in (agreement.cosine, agreement.overlap, agreement.chance)
    )
    top = f"intersection over union of the most changed {100 * TOP:g} % of the pixels"
    return [("cosine similarity of the two difference images", value, "0.000"), (top, common, chance)]


def agreement_title(agreement: Agreement) -> str:
    """Heading of the agreement."""
    start = "Agreement of the two chosen changes"
    return f"{start}: not measured, {agreement.missing}" if agreement.missing else start


def print_diff(diff: Diff, console: Console) -> None:
    """Print the tables of a comparison."""
    lines = [Text(plain(diff.explanations[0].record["image"]), style="bold")]
    for explanation in diff.explanations:
        classifier, source, target = sees(explanation)
        lines += [Text(), Text(f"{explanation.record['method']} on {classifier}: {source} -> {target}", style="bold")]
        lines += [Text(f"  {remark}") for remark in remarks(explanation)]
        lines.append(_path_table(explanation))
    lines += [Text("* chosen: the weakest that flips, else the strongest"), Text(KEY)]
    lines += [Text(f"Note: {warning}", style="yellow") for warning in warnings(diff)]
    for equal in (diff.change, diff.confidence):
        lines += [Text(), Text(equal_title(equal), style="bold")]
        if equal.readings:
            headings = ["method", "between", *(heading for heading, _, _ in READING)]
            lines.append(_table(headings, equal_rows(diff, equal), left=2))
    lines += [Text(), Text(agreement_title(diff.agreement), style="bold")]
    if not diff.agreement.missing:
        lines.append(_table(["measure", "value", "chance"], agreement_rows(diff.agreement), left=1))
        lines.append(Text(CHANCE))
    console.print(Group(*lines), highlight=False)


def _path_table(explanation: Explanation) -> Table:
    label = METHODS[explanation.record["method"]].label
    rows = []
    for place, row in enumerate(explanation.rows):
        mark = "*" if place == explanation.chosen else ""
        rows.append([f"{row[label]:g}{mark}", *cells(row, PATH)])
    return _table([label, *(heading for heading, _, _ in PATH)], rows, left=1)


def _table(headings: list[str], rows: list, left: int) -> Table:
    """A table whose first `left` columns are text and the others numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for place, heading in enumerate(headings):
        narrow = Text(heading if place < left else heading.replace(" ", "\n"), style="bold")
        table.add_column(narrow, justify="left" if place < left else "right", vertical="bottom")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
