"""The committed results: rules older than their rows, one protocol, a README that says what the reference says."""

import json
import sys
from pathlib import Path

import pytest

from common.claims import load_claims, require_older_rules

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = sorted((ROOT / "reference").glob("*/*.json"))
sys.path.insert(0, str(ROOT / "scripts"))


def rules_of(reference):
    """The committed rules of a paper, or of the comparison."""
    from verdict_table import folder

    return ROOT / folder(reference.stem) / "claims.yaml"


def test_there_is_a_reference():
    assert REFERENCES


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_rules_are_older_than_the_rows_they_judge(reference):
    require_older_rules(reference, rules_of(reference), ROOT)


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_claim_has_a_verdict_and_no_lists(reference):
    report = json.loads(reference.read_text())
    claims = load_claims(rules_of(reference)).claims
    assert report["claims"].keys() == claims.keys()
    assert report["protocol"]["scale"] == reference.parent.name
    values = [*report["protocol"].values(), *(value for claim in report["claims"].values() for value in claim.values())]
    assert not any(isinstance(value, list | dict) for value in values)
    for name, claim in report["claims"].items():
        assert (claim["statement"], claim["where"], claim["paper"]) == (
            claims[name].statement,
            claims[name].where,
            claims[name].paper_value,
        )


def test_readmes_say_what_the_references_say():
    from verdict_table import pages

    assert [path.name for path, text in pages().items() if path.read_text() != text] == []
