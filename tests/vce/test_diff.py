"""`vce diff`: its maths in closed form, and the command with real methods on small nets."""

import base64
import io
import itertools
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image
from small_nets import digit_systems, paint, work_in

from common.data.images import load_image
from common.progress import Progress
from papers.clarity.systems import load_shipped
from vce import cli
from vce.diff import DIFFERENT, agreement, compare, equal, find_targets, load_classifiers
from vce.diff_page import page_path
from vce.diff_text import plain
from vce.explain import explain_files
from vce.explanation import Explanation, Request, sizes
from vce.methods import METHODS
from vce.pictures import map_uri, picture_uri
from vce.readings import READ, chance_overlap, cosine, most_changed, overlap, points, read_at

REPOSITORY = Path(__file__).parents[2]
DIGITS = """
import torch
from torch import nn

class Digits(nn.Module):
    '''Sees the digit `seen` unless the other one's half of the picture is brighter than the rest.'''
    image_shape = (1, 28, 28)

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, images):
        halves = images[:, 0].unflatten(2, (2, 14)).mean((1, 3))
        logits = torch.full((len(images), 10), -40.0)
        logits[:, :2] = 60 * (halves - images.mean((1, 2, 3))[:, None])
        bias = torch.zeros(10)
        bias[self.seen] = 3
        return logits + bias

def sees0():
    return Digits(0)

def sees1():
    return Digits(1)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    return work_in(tmp_path, monkeypatch)


@pytest.fixture
def digits(here, monkeypatch) -> tuple[Path, str, str]:
    """A picture, the digit that Clarity's own system does not see in it, and a net that does not either."""
    (here / "digitnet.py").write_text(DIGITS)
    sys.modules.pop("digitnet", None)
    monkeypatch.setattr("papers.clarity.systems.ROOT", here)
    trained = here / "work/cpu/clarity/systems/mnist-0.safetensors"
    trained.parent.mkdir(parents=True)
    image = paint(here / "digit.png")
    seen = int(load_shipped(str(digit_systems(trained)))(load_image(image, (1, 28, 28))[None]).argmax())
    return image, str(1 - seen), f"digitnet:sees{seen}"


def run(capsys, *arguments):
    """Exit code, what is printed, and stderr lines of `vce diff`, in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["vce", "diff", *map(str, arguments)])
        cli.main()
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if " methods, " not in line]  # the progress of a slow machine
    return stop.value.code or 0, printed.out, said


def on_colours(capsys, *arguments):
    return run(capsys, *arguments, "--classifier", "colournet:Net")


# the maths


def path(*rows) -> list[dict | None]:
    return [None if row is None else dict(zip(READ, row, strict=True)) for row in rows]


PATH = path(
    (0.1, 0.9, 0.0, 0.0, 0.0, None, 0.0),
    (0.5, 0.4, 0.1, 10.0, 2.0, 0.6, 0.2),
    None,
    (0.9, 0.1, 0.2, 20.0, 3.0, 0.8, 0.6),
)


def test_a_path_is_read_between_its_points_in_closed_form():
    half = read_at(PATH, "mean_abs_change", 0.15)
    assert half.values == pytest.approx(dict(zip(READ, (0.7, 0.25, 0.15, 15, 2.5, 0.7, 0.4), strict=True)))
    assert half.between == (1, 3)  # the point that diverged is left out
    quarter = read_at(PATH, "confidence", 0.2)
    assert quarter.values["l1"] == pytest.approx(2.5) and quarter.between == (0, 1)
    assert quarter.values["hoyer"] == 0.6  # no change has no sparsity
    assert read_at(PATH, "source_confidence", 0.25, falling=True).values["l2"] == pytest.approx(2.5)
    exact = read_at(PATH, "mean_abs_change", 0.1)
    assert exact.between == (1, 1) and exact.values == pytest.approx(PATH[1])
    assert read_at(PATH, "mean_abs_change", 0.0).between == (0, 0)


def test_a_level_that_is_not_on_the_path_is_not_read():
    assert read_at(PATH, "confidence", 0.95).missing == "stays below"
    assert read_at(PATH, "confidence", 0.05).missing == "starts above, at 0.1"
    assert read_at(PATH, "source_confidence", 0.05, falling=True).missing == "stays above"
    assert read_at(PATH, "source_confidence", 0.95, falling=True).missing == "starts below, at 0.9"
    assert read_at(PATH, "confidence", 0.95).values is None


@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=8),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=len(READ), max_size=len(READ)),
    st.booleans(),
)
def test_where_everything_is_linear_in_the_level_the_reading_is_exact(steps, share, lines, falling):
    levels = np.cumsum([0.0, *steps]) * (-1 if falling else 1)
    rows = path(*[[a * level + b for a, b in lines] for level in levels])
    for row, level in zip(rows, levels, strict=True):
        row["mean_abs_change"] = level
    wanted = share * levels[-1]
    found = read_at(rows, "mean_abs_change", wanted, falling)
    low, high = found.between
    assert 0 <= low <= high <= len(steps) and high - low <= 1
    for name, (a, b) in zip(READ, lines, strict=True):
        expected = wanted if name == "mean_abs_change" else a * wanted + b
        assert found.values[name] == pytest.approx(expected, abs=1e-9)


def test_cosine_in_closed_form():
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert cosine(a, b) == pytest.approx(2**-0.5)
    assert cosine(a, 3 * a) == 1 and cosine(a, -a) == -1 and cosine(a, torch.eye(2).flip(0)) == 0
    assert cosine(a, torch.zeros(2, 2)) is None


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.booleans())
def test_cosine_knows_direction_and_not_size(seed, scale, flip):
    a, b = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    sign = -1 if flip else 1
    assert cosine(a, sign * scale * b) == pytest.approx(sign * cosine(b, a), abs=1e-6)


def test_the_most_changed_pixels_and_their_overlap():
    change = torch.arange(100.0).view(10, 10)
    mask = most_changed(change)
    assert mask.sum() == 5 and (change[mask] == torch.arange(95.0, 100)).all()
    assert most_changed(torch.ones(2, 2)).flatten().tolist() == [True, False, False, False]  # at least one, the earlier
    sparse = torch.zeros(10, 10)
    sparse[3, 4] = 1
    assert most_changed(sparse).nonzero().tolist() == [[3, 4]]  # what does not change is never most changed
    assert not most_changed(torch.zeros(10, 10)).any()
    other = torch.zeros(10, 10, dtype=torch.bool)
    other[9, 5:8] = True
    assert overlap(mask, other) == 3 / 5 and overlap(mask, mask) == 1 and overlap(mask, ~mask) == 0
    assert overlap(~(mask | ~mask), torch.zeros(10, 10, dtype=torch.bool)) is None


@pytest.mark.parametrize(("n", "a", "b"), [(5, 2, 3), (6, 2, 2), (4, 3, 3), (5, 0, 2), (3, 3, 1)])
def test_chance_is_the_mean_over_all_draws(n, a, b):
    first = set(range(a))
    draws = [set(draw) for draw in itertools.combinations(range(n), b)]
    mean = np.mean([len(first & draw) / len(first | draw) for draw in draws])
    assert chance_overlap(n, a, b) == pytest.approx(mean) and chance_overlap(n, 0, 0) is None
    assert chance_overlap(n, b, a) == pytest.approx(mean)


# what is compared


def explanation(deltas, statuses=None, confidences=None, reference=None, shape=(1, 2, 2)) -> Explanation:
    """An explanation of a grey image whose counterfactuals differ from it by the numbers `deltas`."""
    image = torch.full(shape, 0.5)
    images = torch.stack([image + delta for delta in deltas])
    statuses, confidences = statuses or ["ok"] * len(deltas), confidences or [0.9] * len(deltas)
    rows = [
        {"eps": float(s + 1), "status": status, "confidence": p, "source_confidence": 1 - p, **size}
        for s, (status, p, size) in enumerate(zip(statuses, confidences, sizes(images - image), strict=True))
    ]
    chosen = statuses.index("ok") if "ok" in statuses else len(rows) - 1
    record = {"method": "svce", "status": statuses[chosen], "counterfactuals": rows}
    record["source"] = {"confidence": 0.8, "target_confidence": 0.1}
    if reference is not None:
        record["reconstruction_error"] = {"target_confidence": 0.2, "source_confidence": 0.7}
        reference = image + reference
    return Explanation(record, image, images, reference, None, chosen)


def test_equal_change_is_read_at_the_smaller_distance():
    pair = explanation([0.1, 0.2]), explanation([0.4])
    found = equal(pair, "mean_abs_change")
    assert found.level == pytest.approx(0.1) and [each.between for each in found.readings] == [(1, 1), (0, 1)]
    assert found.readings[1].values["confidence"] == pytest.approx(0.1 + (0.9 - 0.1) / 4)
    assert found.readings[1].values["l2"] == pytest.approx(0.2, abs=1e-6)


def test_equal_loss_is_read_at_the_larger_confidence_that_is_left():
    pair = explanation([0.1], confidences=[0.7]), explanation([0.4], confidences=[0.95])
    found = equal(pair, "source_confidence", falling=True)
    assert found.level == pytest.approx(0.3)
    assert found.readings[1].values["mean_abs_change"] == pytest.approx(0.4 * (0.8 - 0.3) / (0.8 - 0.05), abs=1e-6)


def test_a_path_starts_from_the_reconstruction_and_no_nearer():
    drawn = explanation([0.3], reference=0.2)
    start = points(drawn)[0]
    assert start["mean_abs_change"] == pytest.approx(0.2) and start["confidence"] == 0.2
    assert start["source_confidence"] == 0.7
    found = equal((drawn, explanation([0.1])), "mean_abs_change")
    assert found.readings[0].missing == "starts above, at 0.2"
    assert (drawn.delta - 0.1).abs().max() < 1e-6  # its own change leaves out what the reconstruction missed


def test_what_diverged_or_has_another_size_is_not_compared():
    lost = explanation([0.1], statuses=["diverged"]), explanation([0.1])
    for found in (equal(lost, "mean_abs_change"), agreement(lost)):
        assert found.missing == "svce diverged"
    other = agreement((explanation([0.1]), explanation([0.1], shape=(3, 4, 4))))
    assert other.missing == "the pictures have different sizes, 1×2×2 and 3×4×4" and other.cosine is None
    still = agreement((explanation([0.0]), explanation([0.1])))
    assert still.cosine is None and still.overlap == 0


# the page


class Page(HTMLParser):
    """Tags with attributes and the text of a page; fails on what is not closed in order."""

    VOID = ("meta", "img", "input")

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def pixels(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_two_methods_on_one_classifier(here, capsys):
    code, out, err = on_colours(capsys, "svce", "fido", "--image", paint(here / "rose.png"))
    assert (code, err) == (0, []) and [file.name for file in (here / "out").iterdir()] == ["rose-svce-fido.html"]
    assert "svce on colournet:Net: red rose (" in out and "-> green pea" in out  # the runner-up
    assert "At equal change: mean |x'-x| = " in out and "(linear interpolation along each path)" in out
    assert "At equal own confidence: p source = " in out  # fido leaves the class that is seen, and moves to none
    assert "status ok says that the class seen before is no longer predicted" in out and DIFFERENT not in out
    assert f"pictures and numbers in {Path('out/rose-svce-fido.html')}" in out
    page = Page((here / "out/rose-svce-fido.html").read_text())
    # the terminal and the page say the same
    for cell in re.findall(r"\d+\.\d+", out):
        assert cell in page.text


def test_the_numbers_are_those_of_vce_explain(here):
    image = paint(here / "rose.png")
    names = ("svce", "fido")
    models = load_classifiers(names, "colournet:Net")
    assert models[0] is models[1]
    with Progress("diff", 2) as progress:
        found = compare(image, names, models, find_targets(models, "green leaf"), 3, progress)
    assert found.shared and progress.done == 2
    for name, ours in zip(names, found.explanations, strict=True):
        method, out = METHODS[name], here / name
        request = Request(name, method.load(), models[0], 2, method.strengths((3, 24, 24)), 3, 4)
        with Progress(name, 1) as progress:
            explain_files([image], request, out, progress)
        theirs = json.loads((out / "rose/explanation.json").read_text())
        for row in (*ours.rows, *theirs["counterfactuals"]):
            row.pop("seconds")
        assert json.loads(json.dumps(ours.record)) == theirs and theirs["target"]["name"] == "green leaf"
        written = np.asarray(Image.open(out / "rose/counterfactual.png"))
        assert (pixels(picture_uri(ours.path[ours.chosen])) == written).all()
    level = min(each.rows[each.chosen]["mean_abs_change"] for each in found.explanations)
    assert found.change.level == level
    for each, reading in zip(found.explanations, found.change.readings, strict=True):
        x = [0, *(row["mean_abs_change"] for row in each.rows)]
        p = [each.record["source"]["target_confidence"], *(row["confidence"] for row in each.rows)]
        assert sorted(x) == x and reading.values["confidence"] == pytest.approx(np.interp(level, x, p))
    a, b = ((each.path[each.chosen] - each.image).flatten() for each in found.explanations)
    assert found.agreement.cosine == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), abs=1e-5)


def test_pictures_of_the_page(here, capsys):
    image = paint(here / "rose.png", size=(24, 24))
    on_colours(capsys, "svce", "fido", "--image", image)
    page = Page((here / "out/rose-svce-fido.html").read_text())
    shown = {}
    for attributes in page.all("img"):
        shown.setdefault(attributes["alt"], pixels(attributes["src"]))
    assert (shown["Original, as the classifier gets it"] == np.asarray(Image.open(image))).all()
    maps = [picture for alt, picture in shown.items() if alt.startswith("Difference map of ")]
    assert len(maps) == 2 and all(picture.shape == (24, 24, 3) for picture in maps)
    lightest = (np.array(colormaps["magma"](1.0)[:3]) * 255).astype(np.uint8)
    ends = [(np.abs(picture.astype(int) - lightest).max(2) <= 1).sum() for picture in maps]
    assert sorted(end > 0 for end in ends) == [False, True]  # one scale: only the larger change reaches its end
    slides = page.all("input")
    assert [slide["type"] for slide in slides] == ["range", "range"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {slide["data-stack"] for slide in slides} | {label["for"] for label in page.all("label")} <= set(ids)
    assert {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes} <= set(ids)


def test_the_page_needs_no_network_and_every_picture_says_what_it_is(here, capsys):
    on_colours(capsys, "fido", "svce", "--image", paint(here / "rose.png"))
    text = (here / "out/rose-fido-svce.html").read_text()
    page = Page(text)
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not any("://" in value for _, attributes in page.tags for value in attributes.values() if value)
    assert "url(" not in text and "@import" not in text and not page.all("link") and len(page.all("script")) == 1
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "prefers-color-scheme: dark" in text and {"name": "viewport"}.items() <= page.all("meta")[1].items()
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == len(page.all("main")) == 1
    assert all(heading.get("scope") in ("row", "col") for heading in page.all("th"))
    assert len(page.all("table")) == 5 and all("aria-labelledby" in table for table in page.all("table"))


def test_the_same_command_gives_the_same_page_but_for_seconds(here, capsys):
    image, texts = paint(here / "rose.png"), []
    for _ in range(2):
        on_colours(capsys, "svce", "fido", "--image", image, "--seed", "5")
        texts.append((here / "out/rose-svce-fido.html").read_text())
    seconds = re.compile(r'<td class="seconds">\d+\.\d\d</td>')
    assert len(seconds.findall(texts[0])) == 3 + 4
    assert seconds.sub("", texts[0]) == seconds.sub("", texts[1])
    assert [file.name for file in (here / "out").iterdir()] == ["rose-svce-fido.html"]


def test_a_terminal_gets_no_commands_from_file_names(here, capsys):
    """Neither in an error nor in the last line; and a page that was there is not replaced without a word."""
    image, missing = "re\x1b[31md\u202e.png", "go\x1b]0;owned\x07ne.png"
    paint(here / image)
    code, _, err = on_colours(capsys, "svce", "fido", "--image", missing)
    assert code == 2 and len(err) == 1 and "\x1b" not in err[0] and "\x07" not in err[0] and "owned" in err[0]
    _, first, _ = on_colours(capsys, "svce", "fido", "--image", image)
    _, second, _ = on_colours(capsys, "svce", "fido", "--image", image)
    assert not {"\x1b", "\u202e"} & set(first + second)
    assert "instead of the page that was there" in second and "instead of the page" not in first


def test_hostile_names_are_shown_as_text(here, capsys):
    script, long = "</script><script>alert(1)</script>", "אבג \u202egnp" + "x" * 300
    (here / "hostile.py").write_text(
        "from colournet import Net\n\ndef build():\n    net = Net()\n"
        f"    net.class_names = ({script!r}, {long!r}, '[bold]:smile:{{{{ 7 * 7 }}}}\\x1b[31m')\n    return net\n"
    )
    sys.modules.pop("hostile", None)
    image = paint(here / "<img src=x onerror='alert(1)'>\"&amp;.png")
    code, out, err = run(capsys, "svce", "fido", "--image", image, "--classifier", "hostile:build")
    assert (code, err) == (0, [])
    (file,) = (here / "out").iterdir()
    page = Page(file.read_text())
    assert len(page.all("script")) == 1 and all("onerror" not in attributes for _, attributes in page.tags)
    assert f"sees {script} (" in page.text and str(image) in page.text and f"target is {plain(long)}" in page.text
    assert "\u202e" not in page.text and "אבג \ufffdgnp" + "x" * 300 in page.text
    assert script in out and "\u202e" not in out and "\x1b" not in out
    code, out, _ = run(capsys, "svce", "fido", "--image", image, "--classifier", "hostile:build", "--target", "2")
    assert code == 0 and "-> [bold]:smile:{{ 7 * 7 }}\ufffd[31m" in out
    page = Page(file.read_text())
    assert "target is [bold]:smile:{{ 7 * 7 }}\ufffd[31m" in page.text


def test_a_name_of_one_line_without_what_reorders_it():
    assert plain("a\n b\x00\u202e\u2066c\ud800 é אב") == "a b\ufffd\ufffd\ufffdc? é אב"


def test_a_long_file_name_fits_the_file_system(here):
    path = page_path(here, Path("א" * 120 + ".png"), ("contrastive", "clarity"))
    assert len(os.fsencode(f".{path.name}.4194304.tmp.html")) <= 255
    path.write_text("")
    assert page_path(Path("out"), Path("in/cat.x.png"), ("a", "b")) == Path("out/cat.x-a-b.html")


def test_methods_with_classifiers_of_their_own(here, digits, capsys):
    image, target, net = digits
    code, out, err = run(capsys, "clarity", "svce", "--image", image, "--target", target, "--classifier", net)
    assert (code, err) == (0, [])
    assert f"Note: {DIFFERENT}" in out and f"At equal own confidence: not read, {DIFFERENT}" in out
    assert "clarity on clarity/mnist l-sample-m2: " in out and f"svce on {net}: " in out
    assert "reconstruction error: mean |reconstruction - x| is 0." in out and "starts above, at 0." in out
    page = Page((here / "out/digit-clarity-svce.html").read_text())
    assert f"Note: {DIFFERENT}" in page.text and "reconstruction error: mean |reconstruction - x| is 0." in page.text
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert "Reconstruction from which clarity starts" in alts
    assert len(page.all("table")) == 4  # none at equal own confidence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("svce", "svce"), "METHOD_B svce: named twice; name two different methods"),
        (("svcee", "fido"), "METHOD_A svcee: unknown; did you mean svce? Known are svce, "),
        (("svce", "fidoo"), "METHOD_B fidoo: unknown; did you mean fido? Known are svce, "),
        (("svce", "disc"), "--target: missing, svce and disc move an image to a class; name the class that both shall"),
        (("fido", "clarity"), "--target: missing, fido and clarity explain different classifiers; name the class that"),
        (
            ("clarity", "contrastive", "--target", "1", "--classifier", "colournet:Net"),
            "--classifier colournet:Net: clarity and contrastive each explain a classifier of their own; leave it out",
        ),
        (("svce", "fido", "--target", "green"), "--target 'green': 2 classes match (1 green pea, 2 green leaf); "),
        (("svce", "fido", "--target", "red rose"), "rose.png: colournet:Net already predicts 'red rose'; choose "),
        (
            ("svce", "clarity", "--target", "1"),
            "svce explains colournet:Net (red rose, green pea, green leaf) and clarity explains clarity/mnist"
            " l-sample-m2 (0, 1, 2 ...), which have no class in common; give svce a --classifier that knows 0 or 1",
        ),
        (("svce", "fido", "--image", "gone.png"), "gone.png: No such file or directory; name a readable image file"),
        (("svce", "fido", "--image", "."), ".: Is a directory; name a readable image file"),
        (("svce", "fido", "--out", "rose.png"), "rose.png: "),
    ],
)
def test_what_cannot_be_compared_is_one_line(here, digits, capsys, arguments, message):
    paint(here / "rose.png")
    code, out, err = on_colours(capsys, "--image", "rose.png", *arguments)
    assert code == 2 and out == "" and len(err) == 1 and err[0].startswith(f"error: {message}")
    assert not (here / "out").exists()


def test_a_target_has_to_be_the_same_class_of_both(here, capsys, digits):
    (here / "swapped.py").write_text(
        "from digitnet import Digits\n\ndef build():\n    net = Digits(0)\n"
        "    net.class_names = tuple('1023456789')\n    return net\n"
    )
    models = load_classifiers(("svce", "clarity"), "swapped:build")
    code, _, err = run(
        capsys, "svce", "clarity", "--image", digits[0], "--target", "1", "--classifier", "swapped:build"
    )
    assert code == 2 and err == [
        "error: --target '1': '0' of swapped:build, but '1' of clarity/mnist l-sample-m2; give a name that both know"
    ]
    assert find_targets(models, None) == (None, None)


def test_help_is_instant_and_has_examples():
    before = os.times().children_user
    code = "import sys, vce.cli\ntry: vce.cli.app(['diff', '--help'])\nfinally: assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert os.times().children_user - before < 1.0
    assert shown.stdout.count("Example: vce diff ") == 3


def test_pictures_keep_their_pixels():
    grey = torch.tensor([[[0.0, 0.5], [1.0, 2.0]]])
    assert pixels(picture_uri(grey)).tolist() == [[0, 128], [255, 255]]
    assert pixels(picture_uri(grey.expand(3, 2, 2))).shape == (2, 2, 3)
    change = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    expected = (np.array(colormaps["magma"](change.numpy() / 4))[..., :3] * 255).round()
    assert np.abs(pixels(map_uri(change, 4.0)) - expected).max() <= 1
    assert (pixels(map_uri(torch.zeros(2, 2), 0.0)) == pixels(map_uri(torch.zeros(2, 2), 1.0))).all()
