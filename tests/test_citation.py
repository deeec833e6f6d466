"""What is cited and by which licence: valid by the format's own schema, generated from one source, complete."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from common.data import registry
from common.data.fetch import fetch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

SCHEMA = "data/cff-schema-1.2.0.json"


@pytest.fixture(scope="module")
def citation():
    # a date would otherwise be read as one, and the schema asks for text
    loader = type("Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": {
        key: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }})  # fmt: skip
    return yaml.load((ROOT / "CITATION.cff").read_text(), loader)


@pytest.fixture(scope="module")
def schema():
    fetch(Path(SCHEMA).name)
    return json.loads((ROOT / SCHEMA).read_text())


def test_the_citation_is_valid_by_the_schema_of_its_format(citation, schema):
    jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker()).validate(citation)


def test_the_schema_refuses_what_is_no_citation(citation, schema):
    for name in ("title", "authors", "message"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft7Validator(schema).validate({key: value for key, value in citation.items() if key != name})


def test_it_is_the_version_of_the_project(citation):
    import tomllib

    assert citation["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_generated_files_are_those_of_their_sources():
    import artifact_table
    import citation as generated

    assert [path.name for path, text in generated.pages().items() if path.read_text() != text] == []
    assert (ROOT / "docs" / "artifacts.md").read_text() == artifact_table.page()


def test_codemeta_and_zenodo_cite_all_five_papers(citation):
    codemeta, zenodo = (json.loads((ROOT / name).read_text()) for name in ("codemeta.json", ".zenodo.json"))
    assert len(codemeta["referencePublication"]) == len(zenodo["related_identifiers"]) == 5
    assert {paper["name"] for paper in codemeta["referencePublication"]} == {
        paper["title"] for paper in citation["references"]
    }
    assert codemeta["license"].endswith(zenodo["license"]) and zenodo["creators"][0]["name"]


def test_every_artifact_says_its_licence_and_where_it_is_from():
    text = (ROOT / "docs" / "artifacts.md").read_text()
    for name in registry.names():
        item = registry.read(name)
        assert item.license and f"| {name} | {item.size:,} | {item.license} |" in text and item.sha256 in text
