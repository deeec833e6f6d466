"""`vce explain` end to end, with the real method and a small convolutional net given as an import path."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import common.files
from common.errors import VceError
from vce import cli
from vce.explain import check_strengths, find_images
from vce.methods import METHODS, find_method, svce_radii

REPOSITORY = Path(__file__).parents[2]
NET = """
import torch
from torch import nn

class Net(nn.Module):
    '''Names the strongest of three colours.'''
    image_shape = (3, 24, 24)
    class_names = ("red rose", "green pea", "green leaf")

    def __init__(self):
        super().__init__()
        self.blur = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        with torch.no_grad():
            self.blur.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 3, 3) / 9)

    def forward(self, images):
        return 60 * self.blur(images).relu().mean((2, 3))

def grey():
    '''Class 1 when brighter than one half, else class 0.'''
    net = Net()
    net.image_shape = (1, 24, 24)
    net.blur = nn.Conv2d(1, 3, 3)
    with torch.no_grad():
        net.blur.weight.copy_(torch.tensor([0, 1, 0]).view(3, 1, 1, 1).expand(3, 1, 3, 3) / 9)
        net.blur.bias.copy_(torch.tensor([0.5, 0, 0]))
    return net
"""
RED, BLUE = (140, 128, 110), (100, 110, 140)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder that holds the net; each test imports it anew."""
    (tmp_path / "colournet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("colournet", None)
    return tmp_path


def paint(path: Path, colour=RED, size=(30, 40), **options) -> Path:
    noise = np.random.default_rng(0).normal(0, 6, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path, **options)
    return path


def run(capsys, *arguments, images=(), target="green pea", classifier="colournet:Net", out="out"):
    """Exit code, stdout lines and stderr lines of `vce explain`, in this process."""
    line = ["vce", "explain", "--target", target, "--classifier", classifier, "--out", out, *arguments]
    for image in images:
        line += ["--image", str(image)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", line)
        cli.main()
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if not line.startswith("svce: ")]  # progress of a slow machine
    return stop.value.code or 0, printed.out.splitlines(), said


def record(folder: Path) -> dict:
    return json.loads((folder / "explanation.json").read_text())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_whole_result_of_one_image(here, capsys):
    image = paint(here / "rose.png")
    code, out, err = run(capsys, "--radius", "20", "--radius", "4", "--seed", "3", images=[image])
    assert (code, err) == (0, [])
    folder = here / "out" / "rose"
    pictures = {
        "counterfactual.png",
        "counterfactual_eps4.png",
        "counterfactual_eps20.png",
        "difference.png",
        "overview.png",
    }
    assert files(here / "out") == {f"rose/{name}" for name in pictures | {"explanation.json"}}
    for name in pictures:
        Image.open(folder / name).load()
    said = record(folder)
    assert said["status"] == "ok" and said["method"] == "svce" and said["seed"] == 3
    assert said["classifier"] == "colournet:Net" and torch.__version__.startswith(said["versions"]["torch"])
    assert said["image_sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert (said["source"]["index"], said["source"]["name"]) == (0, "red rose")
    assert (said["target"]["index"], said["target"]["name"]) == (1, "green pea")
    assert said["source"]["target_confidence"] < 0.5 < said["source"]["confidence"]
    weak, strong = said["counterfactuals"]
    assert (weak["eps"], strong["eps"]) == (4, 20) and weak["l1.5"] <= 4.001 and strong["l1.5"] <= 20.01
    assert strong["status"] == "ok" and strong["confidence"] > 0.5
    assert strong["l1"] == pytest.approx(strong["mean_abs_change"] * 3 * 24 * 24)
    assert strong["l2"] < strong["l1.5"] < strong["l1"]
    assert weak["nfe"] > 0 and weak["seconds"] > 0
    assert out[0].startswith(f"{image}: red rose") and "-> green pea" in out[0] and out[-1] == "results in out"


def test_saved_pictures_hold_the_counterfactual(here, capsys):
    run(capsys, "--radius", "20", images=[paint(here / "rose.png", size=(24, 24))])
    folder, row = here / "out" / "rose", record(here / "out" / "rose")["counterfactuals"][0]
    original = np.asarray(Image.open(here / "rose.png"), float) / 255
    changed = np.asarray(Image.open(folder / row["file"]), float) / 255
    assert np.abs(changed - original).sum() == pytest.approx(row["l1"], abs=original.size * 0.5 / 255)
    assert (folder / "counterfactual.png").read_bytes() == (folder / row["file"]).read_bytes()


def test_weakest_flip_is_chosen_and_a_failure_says_so(here, capsys):
    image = paint(here / "rose.png")
    run(capsys, "--radius", "0.01", "--radius", "15", "--radius", "25", images=[image])
    said = record(here / "out" / "rose")
    assert [row["status"] for row in said["counterfactuals"]] == ["not_flipped", "ok", "ok"] and said["chosen"] == 15
    code, out, _ = run(capsys, "--radius", "0.01", "--radius", "0.02", images=[image])
    said = record(here / "out" / "rose")
    assert code == 0 and said["status"] == "not_flipped" and said["chosen"] == 0.02 and "(not_flipped)" in out[0]


def test_unreadable_image_beside_good_ones(here, capsys):
    folder = here / "in"
    paint(folder / "a.png"), paint(folder / "c.jpg"), (folder / "notes.txt").write_text("no image")
    (folder / "b.png").write_text("<html>404</html>")
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:300])
    code, out, err = run(capsys, "--radius", "10", "--batch-size", "2", images=[folder, here / "gone.png"])
    assert code == 1
    assert sorted(path.name for path in (here / "out").iterdir()) == ["a", "b", "c", "d", "gone"]
    assert [record(here / "out" / name)["status"] for name in "abcd"] == ["ok", "unreadable", "ok", "unreadable"]
    for name, reason in (("b", "web page"), ("d", "truncated"), ("gone", "No such file")):
        assert files(here / "out" / name) == {"explanation.json"}
        said = record(here / "out" / name)
        assert reason in said["error"] and "\n" not in said["error"]
        assert said["target"]["index"] == 1 and said["classifier"] == "colournet:Net"
        assert f"error: {said['error']}" in err
    assert len(err) == 3 and len(out) == 3


def test_image_of_the_target_class_is_skipped(here, capsys):
    code, out, _ = run(capsys, "--radius", "10", images=[paint(here / "rose.png")], target="red rose")
    assert code == 0 and "skipped" in out[0]
    assert files(here / "out") == {"rose/explanation.json"} and record(here / "out" / "rose")["status"] == "skipped"


def test_rotated_photo_is_upright(here, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((24, 24, 3), np.uint8) + np.array(RED, np.uint8)
    pixels[:4] = 255  # the top of the file is the right side of the photo
    Image.fromarray(pixels).save(here / "a.png", exif=exif)
    run(capsys, "--radius", "1", images=[here / "a.png"])
    shown = np.asarray(Image.open(here / "out" / "a" / "counterfactual.png"), int)
    assert shown[:, -4:].mean() > 240 and shown[:, :20].mean() < 140


def test_grey_classifier(here, capsys):
    code, _, _ = run(capsys, "--radius", "10", images=[paint(here / "a.png")], classifier="colournet:grey", target="0")
    said = record(here / "out" / "a")
    assert code == 0 and said["status"] == "ok"
    assert Image.open(here / "out" / "a" / "counterfactual.png").mode == "L"


def test_equal_stems_get_their_own_folders(here, capsys):
    images = [paint(here / "x" / "a.png"), paint(here / "y" / "a.png", BLUE), paint(here / "x" / "a.jpg")]
    run(capsys, "--radius", "1", images=[*images, images[0]])
    assert [record(here / "out" / name)["image"] for name in ("a", "a-2", "a-3")] == [str(path) for path in images]
    assert len(list((here / "out").iterdir())) == 3


def test_a_second_run_replaces_and_is_identical(here, capsys):
    image = paint(here / "rose.png")
    run(capsys, "--radius", "10", "--radius", "20", images=[image])
    first = {name: (here / "out" / "rose" / name).read_bytes() for name in files(here / "out" / "rose")}
    run(capsys, "--radius", "10", "--radius", "20", images=[image])
    second = {name: (here / "out" / "rose" / name).read_bytes() for name in files(here / "out" / "rose")}
    assert [path.name for path in (here / "out").iterdir()] == ["rose"]
    for content in (first, second):
        said = json.loads(content.pop("explanation.json"))
        content["record"] = [{**row, "seconds": 0} for row in said["counterfactuals"]]
    assert first == second
    run(capsys, "--radius", "20", images=[image])
    assert "counterfactual_eps10.png" not in files(here / "out" / "rose")


def test_a_folder_that_is_not_ours_is_left_alone(here, capsys):
    (here / "out" / "rose").mkdir(parents=True)
    (here / "out" / "rose" / "thesis.txt").write_text("mine")
    code, _, err = run(capsys, images=[paint(here / "rose.png")])
    assert code == 2 and err == [f"error: {Path('out/rose')}: exists and is no earlier result; choose another --out"]
    assert files(here / "out") == {"rose/thesis.txt"}


def test_full_disk_leaves_whole_results_only(here, capsys, monkeypatch):
    images = [paint(here / "a.png"), paint(here / "b.png")]
    run(capsys, "--radius", "20", images=images[:1])
    calls, fsync = [], os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(common.files.os, "fsync", full)
    code, _, err = run(capsys, "--radius", "20", "--batch-size", "1", images=images)
    assert code == 2 and len(err) == 1 and "the disk is full; free some space" in err[0] and "b" in err[0]
    assert [path.name for path in (here / "out").iterdir()] == ["a"]
    assert record(here / "out" / "a")["status"] == "ok"


def test_result_folder_that_cannot_be_made(here, capsys):
    (here / "out").write_text("a file")
    code, _, err = run(capsys, "--radius", "1", images=[paint(here / "a.png")])
    assert code == 2 and len(err) == 1 and err[0].startswith("error: out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "green"}, "--target 'green': 2 classes match (1 green pea, 2 green leaf); give the index"),
        ({"target": "red rise"}, "--target 'red rise': colournet:Net has no such class; did you mean red rose?"),
        ({"target": "3"}, "--target 3: colournet:Net has classes 0 to 2"),
        ({"target": "zzz"}, "--target 'zzz': colournet:Net has no such class; choose one of red rose, green pea,"),
        ({"target": ""}, "--target '': colournet:Net has no such class; choose one of red rose, green pea,"),
        ({"classifier": "colournet:Gone"}, "classifier 'colournet:Gone': AttributeError: "),
        (
            {"classifier": "efficientnet"},
            "classifier 'efficientnet': unknown; did you mean imagenet/efficientnet-lite0? ",
        ),
        ({"method": "svcee"}, "--method svcee: unknown; did you mean svce? Known are svce"),
        ({"radius": "-1"}, "--radius -1.0: give a positive number"),
        ({"radius": "nan"}, "--radius nan: give a positive number"),
        ({"images": ["empty"]}, "--image empty: no images in this folder; it needs files of type .png"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(here, capsys, options, message):
    (here / "empty").mkdir()
    extra = [part for name in ("method", "radius") if name in options for part in (f"--{name}", options.pop(name))]
    code, out, err = run(capsys, *extra, **{"images": [paint(here / "a.png")], **options})
    assert code == 2 and out == [] and len(err) == 1
    assert err[0].startswith(f"error: {message}")
    assert not (here / "out").exists()


def test_file_name_that_is_no_text(here, capsys):
    odd = os.fsdecode(b"caf\xe9.png")
    try:
        paint(here / "a.png").rename(here / odd)
    except OSError:
        pytest.skip("this file system keeps text names only")
    (here / os.fsdecode(b"bad\xe9.png")).write_text("<html>")
    code, out, err = run(capsys, "--radius", "20", images=[Path(odd), Path(os.fsdecode(b"bad\xe9.png"))])
    assert code == 1 and out[0].startswith("caf?.png: red rose") and err[0].startswith("error: bad?.png: a web page")
    assert record(here / "out" / os.fsdecode(b"caf\xe9"))["image"] == "caf?.png"


def test_class_by_index_name_or_part(here, capsys):
    for text, index in (("2", 2), ("GREEN PEA", 1), ("leaf", 2)):
        run(capsys, "--radius", "1", images=[paint(here / "a.png")], target=text)
        assert record(here / "out" / "a")["target"]["index"] == index


def test_find_images_and_strengths(tmp_path):
    paint(tmp_path / "b.PNG"), paint(tmp_path / "a.jpg"), (tmp_path / "notes.txt").touch()
    assert [path.name for path in find_images([tmp_path, tmp_path / "a.jpg"])] == ["a.jpg", "b.PNG"]
    assert check_strengths([3, 1, 3]) == (1, 3)
    with pytest.raises(VceError, match="--radius: 9 values; at most 8"):
        check_strengths(range(1, 10))


def test_default_radii_follow_the_image_size():
    assert svce_radii((3, 224, 224)) == (50, 75, 100)
    small = svce_radii((3, 32, 32))
    assert small == pytest.approx([radius * 3072**0.6667 / 150528**0.6667 for radius in (50, 75, 100)], rel=0.01)
    assert find_method("svce") is METHODS["svce"]


def test_help_is_instant_and_imports_no_torch():
    before = os.times().children_user
    code = "import sys, vce.cli\ntry: vce.cli.app(['explain', '--help'])\nfinally: assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert os.times().children_user - before < 1.0
    assert "Example: vce explain --image cat.png" in shown.stdout


def test_lists(capsys, monkeypatch):
    for arguments, expected in (
        (["classifiers"], "imagenet/efficientnet-lite0"),
        (["data", "list"], "efficientnet-lite0.pth"),
    ):
        monkeypatch.setattr(sys, "argv", ["vce", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code and expected in capsys.readouterr().out
