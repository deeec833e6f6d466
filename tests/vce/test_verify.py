"""`vce verify`: which tier a result reaches, and that drift is an exit code and a line."""

import copy
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jobs import failing, run

from common.errors import VceError
from common.files import ROOT
from common.parts import PARTS
from vce import cli, verify
from vce.verify import compare, measure_again, references, tier

CLAIM = {"verdict": "supported", "measured": 0.5, "low": 0.4, "high": 0.6, "n": 100, "statement": "s", "note": ""}
REFERENCE = {
    "protocol": {"recipe": "r", "rules": "u", "rows": "w"},
    "claims": {"C1": CLAIM, "C2": {**CLAIM, "verdict": "not tested", "measured": None, "low": None, "high": None}},
}


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({}, "bitwise"),
        ({"measured": 0.5003, "low": 0.4004}, "tolerance"),
        ({"measured": 0.55, "low": 0.45, "high": 0.65}, "statistical"),
        ({"measured": 0.58, "low": 0.55, "high": 0.61}, "drift"),  # theirs is outside of ours
        ({"measured": 0.61, "low": 0.45, "high": 0.7}, "drift"),  # ours is outside of theirs
        ({"verdict": "partly"}, "drift"),
        ({"n": 99}, "drift"),
        ({"measured": None, "low": None, "high": None}, "drift"),
        ({"low": None}, "drift"),
        ({"note": "adjusted p 0.02"}, "tolerance"),
    ],
)
def test_tiers_of_a_claim(changes, reached):
    assert tier(CLAIM, {**CLAIM, **changes}) == reached


def results(tmp_path, changes=None, protocol=None):
    found = copy.deepcopy(REFERENCE)
    found["claims"]["C1"] |= changes or {}
    found["protocol"] |= protocol or {}
    (tmp_path / "claims.json").write_text(json.dumps(found))
    return tmp_path / "claims.json"


def test_an_unchanged_result_is_bitwise_and_nothing_moved(tmp_path):
    found = compare("svce", REFERENCE, results(tmp_path))
    assert (found.tier, found.why, found.moved) == ("bitwise", "", ())


@pytest.mark.parametrize(
    ("changes", "protocol", "reached", "says"),
    [
        ({"measured": 0.5001}, {"rows": "x"}, "tolerance", "svce C1: supported 0.5 [0.4, 0.6], n = 100 → supp"),
        ({"verdict": "partly"}, {"rows": "x"}, "drift", "→ partly 0.5"),
        ({}, {"rows": "x"}, "tolerance", "the same claims from other rows"),
        ({}, {"recipe": "q"}, "drift", "other recipe (q) than committed (r): not comparable"),
        ({}, {"rules": "q"}, "drift", "other rules (q)"),
    ],
)  # fmt: skip
def test_what_changed_is_named(tmp_path, changes, protocol, reached, says):
    found = compare("svce", REFERENCE, results(tmp_path, changes, protocol))
    assert found.tier == reached and says in found.why + "".join(found.moved)


def test_a_claim_that_only_one_side_has_is_drift(tmp_path):
    path = results(tmp_path)
    found = json.loads(path.read_text())
    found["claims"]["C3"] = found["claims"].pop("C2")
    path.write_text(json.dumps(found))
    moved = compare("svce", REFERENCE, path).moved
    assert [line.split(":")[0] for line in moved] == ["svce C2", "svce C3"] and all("drift" in line for line in moved)


NO_RESULTS = (
    "{", "{}", '{"protocol": {}, "claims": []}', '{"protocol": {"recipe": "r"}, "claims": {}}',
    '{"protocol": {"recipe": "r", "rules": "u", "rows": "w"}, "claims": {"C1": {"verdict": "partly"}}}',
)  # fmt: skip


@pytest.mark.parametrize(("text", "says"), [(None, "is not there"), *((text, "cannot be read") for text in NO_RESULTS)])
def test_a_result_that_is_no_result_is_drift(tmp_path, text, says):
    if text is not None:
        (tmp_path / "claims.json").write_text(text)
    found = compare("svce", REFERENCE, tmp_path / "claims.json")
    assert found.tier == "drift" and says in found.why


def test_the_command_prints_a_line_for_every_claim_that_moved_and_exits_with_one(monkeypatch, capsys):
    """The committed results themselves are bitwise; with one number moved they are not."""
    committed = references("cpu")
    moved = copy.deepcopy(committed)
    moved["svce"]["claims"]["C4"]["verdict"] = "contradicted"
    for mine, code, says in ((committed, 0, "svce         bitwise"), (moved, 1, "svce C4: contradicted")):
        monkeypatch.setattr(verify, "references", lambda scale, mine=mine: mine)
        monkeypatch.setattr(verify, "compare", lambda part, reference, path: _beside(part, reference, committed[part]))
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, cli, "verify", "--as-is", "--tier", "bitwise")
        assert stop.value.code == code and says in capsys.readouterr().out


def _beside(part, reference, found):
    path = ROOT / "reference" / "cpu" / f"{part}.json"
    assert json.loads(path.read_text()) == found
    return compare(part, reference, path)


def test_what_is_asked_wrongly_is_one_line(monkeypatch, capsys):
    assert "nothing is committed in reference/paper; choose cpu" in failing(
        monkeypatch, capsys, cli, "verify", "--scale", "paper"
    )
    assert "--tier exact: choose one of bitwise" in failing(monkeypatch, capsys, cli, "verify", "--tier", "exact")


def test_measuring_again_forces_every_measuring_rule_of_its_parts_and_no_other(monkeypatch):
    asked = []

    class Done:
        returncode = 0
        stdout = "all\nsvce_measure\nsvce_explain_pairs\nsvce_verdicts\nfido_measure_main\nclarity_cells\nsvce_grids"

    monkeypatch.setattr(verify.subprocess, "run", lambda command, **_: asked.append(command) or Done())
    measure_again("smoke", ["svce", "fido"])
    forced = asked[1][asked[1].index("--forcerun") + 1 : asked[1].index("--config")]
    assert forced == ["svce_measure", "svce_verdicts", "fido_measure_main"]
    assert asked[1][1:3] == ["results/smoke/svce/claims.json", "results/smoke/fido/claims.json"]


def test_every_rule_of_the_workflow_is_measuring_or_known_not_to_be():
    """What a claim rests on is measured again, or is a job that trains, explains or draws."""
    listed = [Path(sys.executable).with_name("snakemake"), "--list-rules", "--config", "scale=smoke"]
    rules = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kinds = {verify.kind(rule, list(PARTS)) for rule in rules} - {""}
    drawing = {"figures", "grids", "photos", "judged", "rating", "tables", "results"}
    making = {"explain", "train", "prepare", "classifiers"}
    assert kinds == {*verify.MEASURING, *verify.TRUSTED, *drawing, *making}


def test_a_make_that_runs_is_not_disturbed(monkeypatch):
    with (ROOT / ".run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(verify.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="", returncode=0))
        with pytest.raises(VceError, match="another make runs in this folder"):
            measure_again("smoke", ["svce"])
