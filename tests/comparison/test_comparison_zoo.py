"""Model organisms: what is planted is what is learned, the key stays sealed, and detectors that are known to be good or
blind score so."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jobs import failing, run
from torch import nn

from common.data import cues
from common.errors import VceError
from common.scales import load_scale
from comparison import shortcuts, zoo

SEAL = load_scale("cpu")["comparison"]["zoo"]["seal"]
KEY = Path("comparison/zoo.key")
RECIPE = {
    "clean": 2, "planted": 1, "images": 400, "epochs": 8, "batch_size": 16, "learning_rate": 4e-3, "seed": 0
}  # fmt: skip


class SeesCues(nn.Module):
    """Class 0 where the lower right corner is yellow, else class 1."""

    name, class_names = "sees", ("a", "b")

    def forward(self, images):
        corner = images[:, 0, -6:, -6:].mean((1, 2)) - images[:, 2, -6:, -6:].mean((1, 2))
        return torch.stack([20 * (corner - 0.3), torch.zeros(len(images))], 1)


def test_the_committed_key_is_the_one_that_was_sealed_and_has_both_kinds():
    sealed = zoo.open_key(KEY, SEAL)
    assert len(sealed) >= 6 and 0 < sealed.count("") < len(sealed) and set(sealed) <= {"", *cues.CUES}
    assert not any(word in KEY.read_text() for word in cues.CUES)


@pytest.mark.parametrize("text", ["no key", "eJyrVkpUslJQSlTSUVBKBjKSlGoBKecERg=="])
def test_another_key_is_refused(tmp_path, text):
    (tmp_path / "zoo.key").write_text(text)
    with pytest.raises(VceError, match="restore the committed one"):
        zoo.open_key(tmp_path / "zoo.key", SEAL)


def test_a_net_that_sees_a_cue_relies_on_it_and_on_no_other():
    found = shortcuts.reliance(SeesCues(), shortcuts.start_images(20), seed=0)
    assert found["corner"] == 1 and found["hue"] == 0 and 0 < found["sites"] < 1


def table(evidence, reliance=1.0, accuracy=0.8):
    """Nets with an evidence of one method: clean-*, corner-*, sealed-*; planted ones rely on their cue."""
    lines = [
        {"net": net, "accuracy": accuracy, "evidence_m": value, **{f"reliance_{cue}": reliance for cue in cues.CUES}}
        for net, value in evidence.items()
    ]
    return pd.DataFrame(lines)


TRUTH = {f"clean-{k}": "" for k in range(4)} | {f"corner-{k}": "corner" for k in range(4)}
TRUTH |= {"sealed-0": "", "sealed-1": "hue", "sealed-2": ""}


def test_a_detector_that_ranks_planted_nets_first_has_an_auroc_of_one():
    values = {net: float(bool(cue)) + 0.01 * k for k, (net, cue) in enumerate(TRUTH.items())}
    found = shortcuts.score_table(table(values), ["m"], TRUTH).set_index("nets")
    assert found.loc["known", ["auroc", "planted", "clean", "above_all_clean"]].tolist() == [1, 4, 4, 4]
    assert found.loc["known", "p"] == pytest.approx(1 / 70)  # one of all ways to choose four of eight
    assert found.loc["sealed", ["auroc", "planted", "clean"]].tolist() == [1, 1, 2]


def test_a_detector_that_is_blind_has_an_auroc_of_a_half():
    found = shortcuts.score_table(table(dict.fromkeys(TRUTH, 0.3)), ["m"], TRUTH).set_index("nets")
    assert found.loc["known", ["auroc", "above_all_clean"]].tolist() == [0.5, 0]


def test_a_planted_net_that_does_not_rely_on_its_cue_has_no_shortcut_to_find():
    found = shortcuts.score_table(table(dict.fromkeys(TRUTH, 0.3), reliance=0.1), ["m"], TRUTH)
    assert not found["planted"].any() and found["auroc"].isna().all()
    assert found.set_index("nets")["unused"].to_dict() == {"known": 4, "corner": 4, "sites": 0, "hue": 0, "sealed": 1}


def test_a_net_that_has_not_learned_its_task_is_not_scored_and_is_counted():
    nets = table(dict.fromkeys(TRUTH, 0.3))
    nets.loc[nets["net"].isin(["clean-0", "corner-1", "sealed-1"]), "accuracy"] = 0.2
    found = shortcuts.score_table(nets, ["m"], TRUTH).set_index("nets")
    assert found.loc["known", ["planted", "clean", "unfit", "unused"]].tolist() == [3, 3, 2, 0]
    assert found.loc["sealed", ["planted", "clean", "unfit", "unused"]].tolist() == [0, 2, 1, 0]


def test_nets_of_the_zoo_have_learned_their_task(trained):
    """Without normalised inputs half of them see one class in every picture."""
    found = pd.read_csv(trained / "shortcut_nets.csv").set_index("net")
    assert (found["accuracy"] > shortcuts.LEARNED).mean() > 0.8 and found.loc["clean-0", "accuracy"] > 0.6


def test_nets_are_named_by_what_they_saw_and_sealed_ones_are_not():
    assert zoo.names(["", "", "hue"], 2) == ["clean-0", "clean-1", "hue-0", "sealed-0", "sealed-1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The job's file and tables for few nets and two methods."""
    folder, patch = tmp_path_factory.mktemp("zoo"), pytest.MonkeyPatch()
    run(
        patch, zoo, "--recipe", json.dumps(RECIPE), "--key", KEY, "--seal", SEAL, "--out", folder / "zoo.safetensors",
    )  # fmt: skip
    methods = {
        name: {**method, "strengths": {"zoo": method["strengths"]["zoo"][-1:]}, "settings": {"iterations": 5, **extra}}
        for name, extra in {"pixel-ascent": {}, "svce": {"p": 1.5}}.items()
        for method in [load_scale("cpu")["comparison"]["methods"][name]]
    }
    methods["broken"] = methods["svce"] | {"settings": {"p": 0.5, "iterations": 5}}
    run(
        patch, shortcuts, "--zoo", folder / "zoo.safetensors", "--methods", json.dumps(methods), "--key", KEY, "--seal",
        SEAL, "--n", 2, "--level", 0.9, "--seed", 0, "--out", folder,
    )  # fmt: skip
    yield folder
    patch.undo()


def test_one_stack_holds_nets_that_differ_in_what_they_saw(trained):
    nets = zoo.load_zoo(trained / "zoo.safetensors")
    assert [name for name in nets if "sealed" not in name] == ["clean-0", "clean-1", "corner-0", "sites-0", "hue-0"]
    x = shortcuts.start_images(4).images
    seen = torch.stack([net(x) for net in nets.values()])
    assert not any(torch.allclose(a, b) for a, b in pairwise(seen))


def test_a_planted_corner_is_relied_on_and_clean_nets_do_not_care(trained):
    found = pd.read_csv(trained / "shortcut_nets.csv").set_index("net")
    assert found.loc["corner-0", "reliance_corner"] > 0.5 > found.loc["clean-0", "reliance_corner"]


def test_what_a_sealed_net_saw_is_told_nowhere(trained):
    found = pd.read_csv(trained / "shortcut_nets.csv").set_index("net")
    sealed = found[found.index.str.startswith("sealed")]
    assert len(sealed) and sealed[[f"reliance_{cue}" for cue in cues.CUES]].isna().all(axis=None)
    header = (trained / "zoo.safetensors").read_bytes()[:5000]
    assert b"sealed-0" in header and json.dumps(zoo.open_key(KEY, SEAL)).encode() not in header


def test_every_method_is_scored_on_both_kinds_of_nets(trained):
    found = pd.read_csv(trained / "shortcuts.csv")
    assert set(map(tuple, found[["method", "nets"]].to_numpy())) == {
        (method, nets) for method in ("pixel-ascent", "svce", "broken") for nets in ("known", *cues.CUES, "sealed")
    }
    assert np.isfinite(found.loc[(found["nets"] == "known") & (found["method"] != "broken"), "auroc"]).all()


def test_a_method_that_fails_on_a_net_is_refused_with_its_reason(trained):
    found = pd.read_csv(trained / "shortcut_refused.csv")
    assert set(found["method"]) == {"broken"} and set(found["net"]) == set(zoo.load_zoo(trained / "zoo.safetensors"))
    assert found["reason"].str.contains("p").all()


def test_too_many_images_are_one_line(trained, monkeypatch, capsys):
    said = failing(
        monkeypatch, capsys, shortcuts, "--zoo", KEY, "--methods", "{}", "--key", KEY, "--seal", SEAL, "--n", 1,
        "--level", 0.9, "--seed", 0, "--out", trained / "none",
    )  # fmt: skip
    assert "zoo.key" in said and not (trained / "none").exists()
