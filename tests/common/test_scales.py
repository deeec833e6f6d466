"""Scales: a file over its base, mapping by mapping; what cannot be loaded is named."""

from dataclasses import dataclass

import pytest
import yaml

from common.errors import VceError
from common.files import ROOT
from common.scales import load_scale, parse_recipe

SCALES = sorted(path.stem for path in (ROOT / "config").glob("*.yaml"))


def write(root, **files):
    (root / "config").mkdir()
    for name, content in files.items():
        (root / "config" / f"{name}.yaml").write_text(yaml.safe_dump(content))


def test_a_scale_says_only_what_differs(tmp_path):
    write(
        tmp_path,
        a={"n": 1, "deep": {"x": 1, "list": [1, 2], "kept": 5}},
        b={"base": "a", "deep": {"x": 2, "list": [3]}, "own": True},
        c={"base": "b", "n": 9},
    )
    assert load_scale("a", tmp_path) == {"n": 1, "deep": {"x": 1, "list": [1, 2], "kept": 5}}
    assert load_scale("b", tmp_path) == {"n": 1, "deep": {"x": 2, "list": [3], "kept": 5}, "own": True}
    assert load_scale("c", tmp_path)["n"] == 9 and load_scale("c", tmp_path)["deep"]["x"] == 2


def test_unknown_scales_and_circles_are_named(tmp_path):
    write(tmp_path, a={"base": "b"}, b={"base": "a"})
    with pytest.raises(VceError, match=r"scale 'z': there is no config/z\.yaml; choose one of a, b"):
        load_scale("z", tmp_path)
    with pytest.raises(VceError, match="its base leads back to itself"):
        load_scale("a", tmp_path)


@pytest.mark.parametrize("name", SCALES)
def test_the_scales_of_the_repository_hang_together(name):
    config = load_scale(name)
    svce = config["svce"]
    assert config["scale"] == name and set(config["classifiers"]) <= set(config["splits"])
    assert sorted(group for job in svce["jobs"] for group in job) == sorted(svce["groups"])
    for entry in (entry for group in svce["groups"].values() for entry in group):
        assert entry["world"] in config["splits"] and entry["starts"] in svce["starts"]
        assert set(entry["cells"]) <= set(svce["cells"])
        assert set(entry["classifiers"]) <= set(config["classifiers"][entry.get("trained_on", entry["world"])])
        assert svce["starts"][entry["starts"]]["n"] <= config["splits"][entry["world"]]["pairs"]
        traced = set(entry.get("traced", ()))
        assert not traced or entry["starts"] == "pairs"


@dataclass
class Training:
    epochs: int
    rate: float = 0.1


def test_a_wrong_recipe_names_its_field():
    assert parse_recipe(Training, {"epochs": 3}) == Training(3, 0.1)
    with pytest.raises(VceError, match=r"unexpected keyword argument 'epoch'; fix it in config/"):
        parse_recipe(Training, {"epoch": 3})
