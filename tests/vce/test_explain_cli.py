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
from small_nets import BLUE, RED, digit_systems, paint, work_in

import common.files
from common.data.images import load_image
from common.errors import VceError
from papers.clarity.explain import explain as clarity_explain
from papers.clarity.systems import load_shipped
from vce import cli
from vce.explain import _short, check_strengths, find_images
from vce.methods import METHODS, find_method, svce_radii
from vce.pictures import draw_overview

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    return work_in(tmp_path, monkeypatch)


def run(capsys, *arguments, images=(), target="green pea", classifier="colournet:Net", out="out"):
    """Exit code, stdout lines and stderr lines of `vce explain`, in this process."""
    line = ["vce", "explain", "--out", out, *arguments]
    line += [] if target is None else ["--target", target]
    line += ["--classifier", classifier] if classifier else []
    for image in images:
        line += ["--image", str(image)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", line)
        cli.main()
    printed = capsys.readouterr()
    progress = ("svce: ", "clarity: ", "fido: ")  # of a slow machine
    said = [line for line in printed.err.splitlines() if not line.startswith(progress)]
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
        ({"radius": "-1"}, "--strength -1.0: give a positive number"),
        ({"radius": "nan"}, "--strength nan: give a positive number"),
        ({"strength": "0"}, "--strength 0.0: give a positive number"),
        (
            {"method": "clarity"},
            "--classifier colournet:Net: clarity explains its own latent classifier, no other; choose clarity/mnist or",
        ),
        ({"images": ["empty"]}, "--image empty: no images in this folder; it needs files of type .png"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(here, capsys, options, message):
    (here / "empty").mkdir()
    given = [name for name in ("method", "radius", "strength") if name in options]
    extra = [part for name in given for part in (f"--{name}", options.pop(name))]
    code, out, err = run(capsys, *extra, **{"images": [paint(here / "a.png")], **options})
    assert code == 2 and out == [] and len(err) == 1
    assert err[0].startswith(f"error: {message}")
    assert not (here / "out").exists()


# clarity, which brings its own classifier


@pytest.fixture
def systems(here) -> Path:
    return digit_systems(here / "s.safetensors")


def clarity(capsys, systems, *arguments, images, **options):
    options = {"classifier": str(systems), "target": str(other_digit(systems, images[0])), **options}
    return run(capsys, "--method", "clarity", *arguments, images=images, **options)


def other_digit(systems, image) -> int:
    """The digit, of 0 and 1, that the system does not see."""
    return 1 - int(load_shipped(str(systems))(load_image(image, (1, 28, 28))[None]).argmax())


def test_clarity_explains_its_own_classifier(here, systems, capsys):
    image = paint(here / "digit.png")
    code, out, err = clarity(capsys, systems, images=[image])
    assert (code, err) == (0, [])
    folder, said = here / "out" / "digit", record(here / "out" / "digit")
    taus = [row["tau"] for row in said["counterfactuals"]]
    pictures = {"counterfactual.png", "reconstruction.png", "difference.png", "overview.png"}
    assert files(folder) == pictures | {"explanation.json"} | {f"counterfactual_tau{tau:g}.png" for tau in taus}
    assert taus == [0.5, 0.9, 0.99] and said["method"] == "clarity"
    assert said["classifier"] == "clarity/mnist l-sample-m2" and said["status"] == "ok" and said["chosen"] == 0.5
    assert all(row["tau"] - 1e-6 <= row["confidence"] < row["tau"] + 0.1 for row in said["counterfactuals"])
    nfe = [row["nfe"] for row in said["counterfactuals"]]
    assert 0 < nfe[0] <= nfe[1] <= nfe[2]
    target, source = said["target"]["name"], said["source"]["name"]
    assert {target, source} == {"0", "1"} and out[0].startswith(f"{image}: {source} ") and "at tau 0.5 (ok)" in out[0]


def test_clarity_shows_the_reconstruction_that_it_starts_from(here, systems, capsys):
    clarity(capsys, systems, "--strength", "0.7", images=[paint(here / "digit.png")])
    folder, said = here / "out" / "digit", record(here / "out" / "digit")
    assert [row["tau"] for row in said["counterfactuals"]] == [0.7]  # --strength is --radius by another name
    x, shown = load_image(here / "digit.png", (1, 28, 28))[None], {}
    for name in ("reconstruction", "counterfactual"):
        shown[name] = torch.from_numpy(np.asarray(Image.open(folder / f"{name}.png")) / 255)
    system = load_shipped(str(systems))
    assert (shown["reconstruction"] - system.vae.reconstruct(x)[0, 0]).abs().max() <= 0.5 / 255 + 1e-6
    # what is reported is the change of the original, the reconstruction's error included
    change = (shown["counterfactual"] - x[0, 0]).abs().sum().item()
    assert said["counterfactuals"][0]["l1"] == pytest.approx(change, rel=0.01)


def test_clarity_by_default_explains_the_digits_of_the_best_scale(here, systems, capsys, monkeypatch):
    monkeypatch.setattr("papers.clarity.systems.ROOT", here)
    target, image = str(other_digit(systems, paint(here / "digit.png"))), here / "digit.png"
    code, _, err = clarity(capsys, systems, images=[image], target=target, classifier=None)
    assert code == 2 and not (here / "out").exists()
    assert err == [
        "error: clarity/mnist: not trained yet; run `snakemake work/cpu/clarity/systems/mnist-0.safetensors`, a few"
        " minutes, first"
    ]
    trained = here / "work/smoke/clarity/systems/mnist-0.safetensors"
    trained.parent.mkdir(parents=True)
    systems.rename(trained)
    for classifier in (None, "clarity/mnist"):
        code, _, err = clarity(capsys, trained, images=[image], target=target, classifier=classifier)
        assert (code, err) == (0, []) and record(here / "out" / "digit")["classifier"] == "clarity/mnist l-sample-m2"


def test_clarity_skips_the_target_class(here, systems, capsys):
    image = paint(here / "digit.png")
    code, out, _ = clarity(capsys, systems, images=[image], target=str(1 - other_digit(systems, image)))
    assert code == 0 and "skipped" in out[0] and files(here / "out") == {"digit/explanation.json"}


def test_clarity_says_what_is_wrong_in_one_line(here, systems, capsys):
    image = paint(here / "digit.png")
    (here / "broken.safetensors").write_bytes(systems.read_bytes()[:500])
    cases = [
        (("--strength", "1.5"), {}, "strengths: τ = 1.5 is no confidence between 0 and 1"),
        (("--strength", "1"), {}, "strengths: τ = 1 is no confidence between 0 and 1"),
        ((), {"classifier": "broken.safetensors", "target": "0"}, "broken.safetensors: not a systems file ("),
        ((), {"classifier": "gone.safetensors", "target": "0"}, "gone.safetensors: not a systems file ("),
        ((), {"classifier": "imagenet/efficientnet-lite0"}, "--classifier imagenet/efficientnet-lite0: "),
        ((), {"target": "10"}, "--target 10: clarity/mnist l-sample-m2 has classes 0 to 9"),
    ]
    for arguments, options, message in cases:
        code, out, err = clarity(capsys, systems, *arguments, images=[image], **options)
        assert code == 2 and out == [] and len(err) == 1 and err[0].startswith(f"error: {message}"), message
        assert not (here / "out").exists()


def test_a_systems_file_is_no_classifier_of_svce(here, systems, capsys):
    code, out, err = run(capsys, images=[paint(here / "a.png")], classifier=str(systems), target="0")
    assert code == 2 and out == [] and len(err) == 1 and "not a classifier file" in err[0]


def test_the_overview_shows_the_reconstruction_below_the_original(tmp_path):
    grey, paths = torch.full((1, 8, 8), 0.5), torch.rand(2, 1, 8, 8)
    for name, reference in (("without", None), ("with", torch.zeros(1, 8, 8))):
        titles = ("original", ["a", "b"])
        draw_overview(grey, reference, paths, paths.sum(1), titles, tmp_path / f"{name}.png")
    without, beside = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("without", "with"))
    assert without.shape == beside.shape
    height, width = without.shape
    corner = (slice(height // 2, None), slice(0, width // 3 - width // 30))
    assert (without[corner] == 255).all() and (beside[corner] == 0).mean() > 0.3


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


def test_fido_explains_what_is_seen_and_needs_no_target(here, capsys):
    image = paint(here / "rose.png", size=(24, 24))
    shares = ("--strength", ".02", "--strength", ".4")
    code, out, err = run(capsys, "--method", "fido", *shares, images=[image], target=None)
    assert (code, err) == (0, [])
    folder, said = here / "out" / "rose", record(here / "out" / "rose")
    assert files(folder) == {
        "counterfactual.png", "counterfactual_share0.02.png", "counterfactual_share0.4.png", "difference.png",
        "explanation.json", "mask.png", "overview.png", "saliency.png",
    }  # fmt: skip
    assert said["source"]["name"] == "red rose" and said["target"]["name"] == "green pea" and "SDR" in said["about"]
    less, more = said["counterfactuals"]
    assert less["nfe"] == more["nfe"] == 480 and less["l1"] < more["l1"]
    # its last picture is chosen, since a red image stays red whatever part of it is imputed
    assert f"-> red rose {100 * more['source_confidence']:.1f} % at share 0.4 (not_flipped)" in out[0]
    assert more["predicted"]["name"] == "red rose" and more["predicted"]["confidence"] == more["source_confidence"]
    changed = np.asarray(Image.open(folder / more["file"]), float) - np.asarray(Image.open(image), float)
    assert (np.abs(changed).sum(2) > 0).mean() == pytest.approx(0.4, abs=0.02)
    mask = np.asarray(Image.open(folder / "mask.png").convert("L"))
    assert set(np.unique(mask)) <= {0, 255} and mask.shape == (24, 24)
    assert said["mask_area"] == pytest.approx((mask == 255).mean(), abs=1e-6)
    run(capsys, "--method", "fido", images=[image], target="green leaf")
    assert record(folder)["target"]["name"] == "green leaf"


def test_other_methods_ask_for_a_target(here, capsys):
    code, _, err = run(capsys, images=[paint(here / "a.png")], target=None)
    assert code == 2 and err == [
        "error: --target: missing, svce moves an image to a class; name one, such as --target tabby"
    ]


def test_fido_refuses_a_strength_that_is_no_share(here, capsys):
    code, _, err = run(capsys, "--method", "fido", "--strength", "2", images=[paint(here / "a.png")], target=None)
    assert code == 2 and err == ["error: strengths: 2 is no share of pixels above 0 and up to 1"]


def test_find_images_and_strengths(tmp_path):
    paint(tmp_path / "b.PNG"), paint(tmp_path / "a.jpg"), (tmp_path / "notes.txt").touch()
    assert [path.name for path in find_images([tmp_path, tmp_path / "a.jpg"])] == ["a.jpg", "b.PNG"]
    assert check_strengths([3, 1, 3]) == (1, 3)
    with pytest.raises(VceError, match="--strength: 9 values; at most 8"):
        check_strengths(range(1, 10))


def test_default_radii_follow_the_image_size():
    assert svce_radii((3, 224, 224)) == (50, 75, 100)
    small = svce_radii((3, 32, 32))
    assert small == pytest.approx([radius * 3072**0.6667 / 150528**0.6667 for radius in (50, 75, 100)], rel=0.01)
    assert find_method("svce") is METHODS["svce"] and METHODS["clarity"].strengths((1, 28, 28)) == (0.5, 0.9, 0.99)


def test_methods_load_their_own_classifiers():
    assert METHODS["svce"].load_classifier(None).name == "imagenet/efficientnet-lite0"
    assert METHODS["clarity"].load() is clarity_explain
    with pytest.raises(VceError, match="clarity explains its own latent classifier"):
        METHODS["clarity"].load_classifier("imagenet/efficientnet-lite0")


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


def test_titles_say_what_was_not_reached():
    row = {"status": "ok", "confidence": 0.901, "tau": 0.99, "eps": 50.0}
    assert (
        _short(row, "tau") == ", not reached" and _short(row | {"tau": 0.9}, "tau") == "" and _short(row, "eps") == ""
    )
    assert _short(row | {"status": "diverged"}, "tau") == ", diverged"
    assert _short(row | {"status": "not_flipped"}, "eps") == ", not flipped"
