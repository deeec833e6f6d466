"""The crate of a run: what its profiles ask for, every byte by its hash, and a figure made again by the recorded
command."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from run_of_nothing import SCALE, write_run

from common.errors import VceError
from common.files import ROOT
from common.parts import PARTS
from comparison.report import crate
from comparison.report.folders import MARK

RULE = f"""
rule verdict_figure:
    input:
        "results/{SCALE}/svce/tables/tests.csv",
    output:
        "figures/{SCALE}/svce/verdicts.png",
        "figures/{SCALE}/svce/verdicts.svg",
    log:
        "verdicts.log",
    shell:
        "python -m common.verdict_figure --tests {{input}} --out {{output[0]}} 2> >(tee {{log}} >&2)"
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run whose verdict figure of svce a real workflow drew."""
    root = write_run(tmp_path_factory.mktemp("run"))
    tests = {"claim": "C1", "test": ["one", "two"], "role": "primary", "rule": "more", "verdict": "supported"}
    numbers = {"mean": [0.2, 0.3], "low": [0.1, 0.2], "high": [0.3, 0.4], "n": 100, "seeds": "+++", "line": 0.0}
    table = pd.DataFrame({**tests, **numbers, "share": 1.0, "kind": "difference", "reason": ""})
    table.to_csv(root / "results" / SCALE / "svce" / "tables" / "tests.csv", index=False)
    (root / "figures" / SCALE / "svce" / "verdicts.png").unlink()
    (root / "Snakefile").write_text(RULE)
    for name in ("CITATION.cff", "LICENSE", "requirements.lock"):
        shutil.copy(ROOT / name, root / name)
    command = ["snakemake", f"figures/{SCALE}/svce/verdicts.png", "--cores", "1", "--quiet", "all"]
    subprocess.run(command, cwd=root, env=ENVIRONMENT, check=True)
    return root


@pytest.fixture(scope="module")
def built(root):
    return crate.build(root, SCALE, root / "crate").parent


@pytest.fixture(scope="module")
def entities(built):
    graph = json.loads((built / "ro-crate-metadata.json").read_text())["@graph"]
    return {entity["@id"]: entity for entity in graph}


def ids(references):
    return {item["@id"] for item in (references if isinstance(references, list) else [references])}


def test_it_says_what_its_profiles_ask_for(entities):
    """Workflow Run Crate 0.5: the profiles, a main workflow with its language, an action with instrument, object and
    result; RO-Crate: name, description, date and licence of the root."""
    root, workflow, run = entities["./"], entities["Snakefile"], entities["#run"]
    assert set(crate.PROFILES) <= ids(root["conformsTo"]) and set(crate.PROFILES) <= set(entities)
    assert all(root[name] for name in ("name", "description", "datePublished", "license"))
    assert entities["ro-crate-metadata.json"]["about"] == {"@id": "./"}
    assert root["mainEntity"] == {"@id": "Snakefile"}
    assert {"File", "SoftwareSourceCode", "ComputationalWorkflow"} <= set(workflow["@type"])
    assert entities[workflow["programmingLanguage"]["@id"]]["name"] == "Snakemake"
    assert run["@type"] == "CreateAction" and run["instrument"] == {"@id": "Snakefile"}
    assert run["name"] == f"snakemake all --config scale={SCALE}"
    assert {"CITATION.cff", "LICENSE", "requirements.lock"} <= ids(run["object"])
    assert f"figures/{SCALE}/svce/verdicts.png" in ids(run["result"])


def test_every_reference_leads_to_an_entity(entities):
    for entity in entities.values():
        for name, value in entity.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict) and "@id" in item and not item["@id"].startswith("http"):
                    assert item["@id"] in entities, (entity["@id"], name)


def test_every_file_is_there_with_its_hash_and_none_beside(built, entities):
    files = {name: entity for name, entity in entities.items() if "File" in entity["@type"]}
    there = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert there == {*files, "ro-crate-metadata.json", MARK}
    for name, entity in files.items():
        if name != "Snakefile":
            data = (built / name).read_bytes()
            assert entity["sha256"] == hashlib.sha256(data).hexdigest() and entity["contentSize"] == str(len(data))
    for part in PARTS:
        assert f"results/{SCALE}/{part}/claims.json" in files
    assert f"results/{SCALE}/comparison/rows.parquet" in files


def test_the_same_results_give_the_same_bytes(root, built, tmp_path):
    again = crate.build(root, SCALE, tmp_path / "again").parent
    for path in sorted(path for path in built.rglob("*") if path.is_file()):
        assert path.read_bytes() == (again / path.relative_to(built)).read_bytes(), path


def test_a_figure_is_made_again_by_the_command_that_the_crate_records(built, entities, tmp_path):
    """In a folder that holds nothing but what the crate says that the job read."""
    figure = f"figures/{SCALE}/svce/verdicts.png"
    (action,) = [
        found for found in entities.values() if found["@id"] != "#run" and figure in ids(found.get("result", []))
    ]
    for name in ids(action["object"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(built / name, tmp_path / name)
    command = shlex.split(action["description"])
    assert entities[action["instrument"]["@id"]]["name"] == command[2] == "common.verdict_figure"
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, env=ENVIRONMENT, check=True)
    assert (tmp_path / figure).read_bytes() == (built / figure).read_bytes()


def test_a_crate_whose_metadata_snakemake_removed_is_built_anew(root, tmp_path):
    """As it does before it runs a job again."""
    path = crate.build(root, SCALE, tmp_path / "crate")
    before = path.read_bytes()
    path.unlink()
    assert crate.build(root, SCALE, tmp_path / "crate").read_bytes() == before


def test_a_folder_of_somebody_else_is_left_alone(root, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(VceError, match="holds files that are not ours"):
        crate.build(root, SCALE, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_without_records_there_is_no_crate(root, tmp_path):
    """Results that were copied without Snakemake's records: a crate without jobs would say nothing of them."""
    bare = shutil.copytree(root, tmp_path / "bare", ignore=shutil.ignore_patterns(".snakemake", "crate"))
    with pytest.raises(VceError, match="nothing is recorded of the jobs"):
        crate.build(bare, SCALE, tmp_path / "crate")
    assert not (tmp_path / "crate").exists()


def test_an_unfinished_scale_is_one_line(tmp_path):
    with pytest.raises(
        VceError, match=r"results/test/svce: no claims\.json; run snakemake all --config scale=test first"
    ):
        crate.results(tmp_path, SCALE)
