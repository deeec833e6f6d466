"""Every verdict is reachable, none is reachable by mistake, and rules younger than their rows are refused."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml

from common import claims
from common.claims import judge, load_claims, require_older_rules, rules_hash
from common.errors import VceError
from common.verdicts import usual_pairs

A, B = {"method": "a"}, {"method": "b"}
IMAGES, SEEDS = 100, 3


def rows(a, b, *, images=IMAGES, seeds=SEEDS, noise=0.5, metric="confidence", strengths=(1.0,)):
    """Long rows of two methods whose means per seed are `a` and `b` (a number or one per seed)."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=images) * 3  # images differ far more than methods: only pairing sees the difference
    frames = []
    for method, mean in (("a", a), ("b", b)):
        for seed in range(seeds):
            values = np.broadcast_to(mean, seeds)[seed] + shared + noise * rng.normal(size=images)
            frames += [
                pd.DataFrame(
                    {"method": method, "seed": seed, "image": np.arange(images), "strength": s, metric: values}
                )
                for s in strengths
            ]
    return pd.concat(frames).assign(confidence=lambda t: t.get("confidence", 0.5))


def claim(*tests):
    base = {"role": "primary", "kind": "difference", "metric": "confidence", "a": A, "b": B, "at": {"strength": 1}}
    tests = [{"name": f"t{k}", **base, **test} for k, test in enumerate(tests)]
    tests = [{key: value for key, value in test.items() if value is not None} for test in tests]
    fields = {"statement": "s", "where": "unknown", "paper_value": "unknown", "source": "spec", "tests": tests}
    return claims.Claims.model_validate({"paper": "p", "claims": {"C1": fields}})


def verdict(table, *tests):
    verdicts, outcomes = judge(claim(*(tests or [{}])), {"rows": table})
    return verdicts["C1"]["verdict"], verdicts["C1"], outcomes


def test_a_clear_difference_is_supported():
    found, summary, (outcome,) = verdict(rows(0.5, 0.0))
    assert found == "supported" and summary["note"] == "" and outcome.share == 1
    assert summary["low"] < 0.5 < summary["high"] and summary["n"] == IMAGES
    assert summary["measured"] == pytest.approx(0.5, abs=0.1)


def test_flipping_the_sign_flips_the_verdict():
    table = rows(0.5, 0.0)
    flipped = table.assign(confidence=-table["confidence"])
    swapped = table.assign(method=table["method"].map({"a": "b", "b": "a"}))
    assert verdict(flipped)[0] == verdict(swapped)[0] == "contradicted"
    assert verdict(flipped)[1]["measured"] == pytest.approx(-verdict(table)[1]["measured"])


def test_no_difference_is_inconclusive():
    assert verdict(rows(0.0, 0.0))[0] == "inconclusive"


def test_rows_that_do_not_exist_are_not_tested():
    found, summary, (outcome,) = verdict(rows(0.5, 0.0), {"b": {"method": "c"}})
    assert found == "not tested" and "method=c" in summary["note"] and outcome.n == 0
    assert summary["measured"] is summary["low"] is None
    json.loads(json.dumps(summary, allow_nan=False))
    for missing in ({"at": {"strength": 9}}, {"metric": "hoyer"}):
        table = rows(0.5, 0.0).assign(hoyer=np.nan)
        assert verdict(table, missing)[0] == "not tested"


def test_a_failing_control_leaves_partly():
    table = rows(0.5, 0.0)
    control = {"role": "control", "a": B, "b": A}
    found, summary, _ = verdict(table, {}, control, {"role": "control"})
    assert found == "partly" and summary["note"] == "t1: contradicted"
    assert verdict(table, {}, control)[0] == "inconclusive"  # it holds under no control
    assert verdict(table, {}, {"role": "control"})[0] == "supported"
    assert verdict(table, {}, {"role": "control", "a": {"method": "c"}})[0] == "partly"


def test_a_control_alone_supports_nothing():
    assert verdict(rows(0.5, 0.0), {"a": B, "b": A}, {"role": "control"})[0] == "contradicted"


def test_a_contradicted_primary_test_contradicts_the_claim():
    assert verdict(rows(0.5, 0.0), {}, {"a": B, "b": A})[0] == "contradicted"


def test_an_inconclusive_primary_test_leaves_partly():
    assert verdict(rows(0.5, 0.0), {}, {"b": A})[0] == "partly"


@pytest.mark.parametrize(("images", "seeds"), [(99, 3), (100, 2), (20, 1)])
def test_screening_size_is_at_most_partly(images, seeds):
    found, summary, (outcome,) = verdict(rows(0.5, 0.0, images=images, seeds=seeds))
    assert outcome.verdict == "supported" and found == "partly" and "screening" in summary["note"]


def test_seeds_must_agree_in_sign():
    table = rows([0.6, 0.6, -0.1], 0.0, noise=0.1)
    found, _, (outcome,) = verdict(table)
    assert outcome.low > 0 and found == "inconclusive" and outcome.share == pytest.approx(2 / 3)


def test_a_seed_without_values_supports_nothing():
    table = rows(0.5, 0.0, metric="hoyer")
    table.loc[table["seed"] == 2, "hoyer"] = np.nan
    assert verdict(table, {"metric": "hoyer"})[2][0].verdict == "inconclusive"


def test_only_pairing_sees_the_difference():
    table = rows(0.2, 0.0)
    assert verdict(table)[0] == "supported"
    shuffled = table.copy()
    who = shuffled["method"] == "b"
    shuffled.loc[who, "confidence"] = (
        shuffled[who].groupby("seed")["confidence"].transform(lambda v: v.sample(frac=1, random_state=1).to_numpy())
    )
    assert verdict(shuffled)[0] == "inconclusive"


def test_cells_of_other_images_or_seeds_are_refused():
    table = rows(0.5, 0.0)
    for column in ("image", "seed"):
        other = table.copy()
        other.loc[other["method"] == "b", column] += 1000
        with pytest.raises(VceError, match="test t0: its cells hold other seeds or images"):
            verdict(other)


@pytest.mark.parametrize(
    ("difference", "margin", "expected"),
    [(0.0, 0.3, "supported"), (0.2, 0.5, "supported"), (1.0, 0.3, "contradicted"), (-1.0, 0.3, "contradicted"),
     (0.3, 0.3, "inconclusive"), (0.0, 0.001, "inconclusive")],
)  # fmt: skip
def test_parity(difference, margin, expected):
    assert verdict(rows(difference, 0.0), {"kind": "parity", "margin": margin})[0] == expected


@pytest.mark.parametrize(("bound", "expected"), [(1.0, "supported"), (0.1, "contradicted"), (0.5, "inconclusive")])
def test_share_below(bound, expected):
    table = rows(0.0, 0.0)
    noise = np.random.default_rng(1).normal(0, 0.1, len(table))
    noise += 0.5 - noise[table["method"] == "a"].mean()
    test = {"kind": "share_below", "b": None, "bound": bound}
    assert verdict(table.assign(confidence=noise), test)[0] == expected


def ladder(falling):
    """A path of 5 strengths that rises at each step, but falls once for a share `falling` of the images."""
    frames = []
    for seed in range(SEEDS):
        for image in range(IMAGES):
            steps = np.full(4, 0.1)
            steps[0] = -0.05 if image < falling * IMAGES else 0.1
            confidence = 0.2 + np.append(0, steps.cumsum())
            strength = [1.0, 2.0, 10.0, 20.0, 30.0]
            frames.append(
                pd.DataFrame(
                    {"method": "a", "seed": seed, "image": image, "strength": strength, "confidence": confidence}
                )
            )
    return pd.concat(frames).sample(frac=1, random_state=0)


@pytest.mark.parametrize(("falling", "expected"), [(0.0, "supported"), (0.04, "inconclusive"), (0.6, "contradicted")])
def test_rises(falling, expected):
    test = {"kind": "rises", "b": None, "at": None, "bound": 0.05}
    found, summary, _ = verdict(ladder(falling), test)
    assert found == expected and summary["measured"] == pytest.approx(falling / 4)


def test_rises_forgives_rounding_only():
    test = {"kind": "rises", "b": None, "at": None, "bound": 0.05}
    for slip, share in ((0.0009, 0), (0.0011, 1)):
        table = ladder(0).assign(confidence=lambda t, slip=slip: 0.5 - slip * t["strength"].rank(method="dense"))
        assert verdict(table, test)[1]["measured"] == share


@pytest.mark.parametrize(
    ("worst", "expected"), [(1e-7, "supported"), (1e-6, "supported"), (2e-6, "contradicted"), (np.nan, "contradicted")]
)
def test_max_below(worst, expected):
    table = pd.DataFrame({"dtype": ["float32"] * 3 + ["float64"], "gap": [0.0, 1e-8, worst, 1.0]})
    test = {"kind": "max_below", "metric": "gap", "a": {"dtype": "float32"}, "b": None, "at": None, "bound": 1e-6}
    tables = {"rows": rows(0, 0), "exactness": table}
    assert judge(claim({**test, "table": "exactness"}), tables)[0]["C1"]["verdict"] == expected


def sets(a, b, *, spread=0.01, halves=200, n=300, seeds=SEEDS):
    """A table of set metrics whose half-samples scatter by `spread` about the means per seed `a` and `b`."""
    rng = np.random.default_rng(0)
    shared = np.append(0.0, rng.normal(size=halves))
    frames = []
    for method, mean in (("a", a), ("b", b)):
        own = np.append(0.0, rng.normal(size=halves)) * spread
        for seed in range(seeds):
            kid = np.broadcast_to(mean, seeds)[seed] + shared + own  # what both cells share cancels
            facts = {"method": method, "seed": seed, "half": range(halves + 1), "kid": kid, "n": n}
            frames.append(pd.DataFrame(facts))
    return pd.concat(frames)


def set_verdict(table):
    test = {"kind": "set_difference", "table": "realism", "metric": "kid", "at": None}
    verdicts, (outcome,) = judge(claim(test), {"realism": table})
    return verdicts["C1"]["verdict"], outcome


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (0.1, 0.0, "supported"),
        (0.0, 0.1, "contradicted"),
        (0.0, 0.0, "inconclusive"),
        ((0.3, 0.3, -0.1), 0.0, "inconclusive"),
    ],
)
def test_set_difference(a, b, expected):
    found, outcome = set_verdict(sets(a, b))
    assert found == expected and outcome.n == 300
    assert outcome.low <= outcome.mean <= outcome.high
    assert outcome.mean == pytest.approx(np.mean(a) - np.mean(b))


def test_a_set_that_is_several_sets_is_refused():
    with pytest.raises(VceError, match="more than one set per seed; name its strength too"):
        set_verdict(pd.concat([sets(0.1, 0.0), sets(0.1, 0.0)]))


@pytest.mark.parametrize(("drop", "expected"), [(0.02, "supported"), (0.3, "contradicted")])
def test_a_set_difference_with_a_bound_asks_for_not_much_worse(drop, expected):
    test = {"kind": "set_difference", "table": "realism", "metric": "kid", "at": None, "bound": -0.1}
    assert judge(claim(test), {"realism": sets(-drop, 0.0)})[0]["C1"]["verdict"] == expected


def test_half_sample_differences_are_paired():
    """What both cells share, here most of the scatter, does not widen the interval."""
    _, outcome = set_verdict(sets(0.1, 0.0, spread=0.001))
    assert outcome.high - outcome.low < 0.01


def test_a_claim_that_holds_under_no_control_is_inconclusive():
    table = pd.concat([rows(0.5, 0.0), rows(-0.5, 0.0).assign(method=lambda t: t["method"] + "2")])
    control = {"role": "control", "a": {"method": "a2"}, "b": {"method": "b2"}}
    assert verdict(table, {}, control, control)[0] == "inconclusive"
    assert verdict(table, {}, control, {"role": "control"})[0] == "partly"


def test_a_screening_claim_is_at_most_partly():
    found = claim({})
    capped = found.model_copy(
        update={"claims": {"C1": found.claims["C1"].model_copy(update={"screening": "few nets"})}}
    )
    summary = judge(capped, {"rows": rows(0.5, 0.0)})[0]["C1"]
    assert summary["verdict"] == "partly" and summary["note"] == "few nets: at most partly"
    assert judge(capped, {"rows": rows(0.0, 0.5)})[0]["C1"]["verdict"] == "contradicted"


def test_small_sets_and_few_seeds_are_screening():
    assert set_verdict(sets(0.1, 0.0, n=99))[0] == set_verdict(sets(0.1, 0.0, seeds=2))[0] == "partly"


def test_above_holds_against_its_bound():
    table = rows(0.5, 0.0)
    for bound, expected in ((-2.0, "supported"), (3.0, "contradicted")):
        test = {"kind": "above", "b": None, "bound": bound}
        assert verdict(table.assign(confidence=table["confidence"] * 0.2), test)[0] == expected


@pytest.mark.parametrize(("b", "expected"), [(0.05, "supported"), (0.3, "contradicted")])
def test_a_difference_with_a_bound_asks_for_not_much_worse(b, expected):
    assert verdict(rows(0.0, b, noise=0.05), {"bound": -0.1})[0] == expected


def test_the_gate_leaves_seeds_out_and_none_left_is_not_tested():
    table = rows((0.5, 0.5, -9.0), 0.0).assign(gate=1.0)
    assert verdict(table, {"gate": "gate"})[0] != "supported"
    shut = table.assign(gate=lambda t: ((t["seed"] < 2) & (t["method"] == "a")).astype(float))
    found, _, (outcome,) = verdict(shut, {"gate": "gate"})
    assert found == "partly" and len(outcome.seeds.split()) == 2  # two seeds are a screening
    found, summary, _ = verdict(table.assign(gate=0.0), {"gate": "gate"})
    assert found == "not tested" and "no training seed passes its gate" in summary["note"]


def test_an_untested_claim_says_why():
    fields = {
        "statement": "s",
        "where": "unknown",
        "paper_value": "unknown",
        "source": "spec",
        "untested": "needs people",
    }
    verdicts, outcomes = judge(claims.Claims.model_validate({"paper": "p", "claims": {"C1": fields}}), {})
    assert verdicts["C1"]["verdict"] == "not tested" and verdicts["C1"]["note"] == "needs people" and not outcomes
    with pytest.raises(ValueError, match="untested"):
        claims.Claim.model_validate({key: value for key, value in fields.items() if key != "untested"})


def test_a_missing_table_or_column_is_named():
    with pytest.raises(VceError, match="C1/t0: there is no table 'sets'; it is one of rows"):
        judge(claim({"table": "sets"}), {"rows": rows(0, 0)})
    with pytest.raises(VceError, match="C1/t0: table 'rows' has no column hoyer"):
        judge(claim({"metric": "hoyer"}), {"rows": rows(0, 0)})


def test_specification_curve_counts_every_choice():
    table = rows(0.5, 0.0, strengths=(1.0, 2.0)).assign(gini=lambda t: -t["confidence"])
    share = verdict(table, {"also_metric": ["gini"], "also_at": [{"strength": 2}]})[2][0].share
    assert share == pytest.approx(0.5)


GOOD = {"name": "t", "role": "primary", "kind": "difference", "metric": "confidence", "a": A, "b": B,
        "at": {"strength": 1}}  # fmt: skip


def document(**changes):
    test = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    fields = {"statement": "s", "where": "unknown", "paper_value": "unknown", "source": "x", "tests": [test]}
    return yaml.safe_dump({"paper": "p", "claims": {"C7": fields}})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("paper: [", "claims.yaml"),
        ("paper: p", "claims"),
        (document(kind="bigger"), "claims.C7.tests.0.kind"),
        (document(typo=1), "claims.C7.tests.0.typo"),
        (document(metric="confidense"), "C7/t: metric 'confidense'"),
        (document(also_metric=["ginni"]), "C7/t: metric 'ginni'"),
        (document(at={"strength": 1, "confidence": 0.5}), "claims.C7.tests.0.at"),
        (document(b=None), "`b`"),
        (document(kind="parity"), "`margin`"),
        (document(kind="share_below", b=None), "`bound`"),
        (document(kind="rises", bound=0.1), "`b`"),
        (document(bound=0.1), "`bound`"),
        (document(role="control"), "`tests`"),
    ],
)
def test_malformed_rules_are_one_line(tmp_path, text, named):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(VceError) as caught:
        load_claims(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and named in message and "\n" not in message


def test_the_hash_sees_rules_not_prose(tmp_path):
    path = tmp_path / "claims.yaml"
    hashes = []
    for text in (document(), document().replace("statement: s", "statement: other"), document(metric="l1")):
        path.write_text(text)
        hashes.append(rules_hash(load_claims(path)))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture
def repository(tmp_path):
    """A git repository whose first commit holds the rules; returns (root, claims path, reference writer)."""

    def git(*command):
        done = subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *command],
            cwd=tmp_path, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    git("init", "-q")
    path = tmp_path / "papers" / "claims.yaml"
    path.parent.mkdir()
    path.write_text(document())
    git("add", ".")
    git("commit", "-qm", "rules")

    def reference(**protocol):
        target = tmp_path / "reference.json"
        facts = {"commit": git("rev-parse", "HEAD"), "rules": rules_hash(load_claims(path)), **protocol}
        target.write_text(json.dumps({"protocol": facts, "claims": {}}))
        return target

    return tmp_path, path, reference, git


def test_rules_committed_before_the_run_are_accepted(repository):
    root, path, reference, _ = repository
    require_older_rules(reference(), path, root)
    path.write_text(document().replace("statement: s", "statement: said better"))
    require_older_rules(reference(), path, root)


def test_rules_changed_after_the_run_are_refused(repository):
    root, path, reference, git = repository
    run = reference()
    path.write_text(document(metric="l1"))
    with pytest.raises(VceError, match="younger than the rows"):
        require_older_rules(run, path, root)
    git("commit", "-qam", "other rules")
    with pytest.raises(VceError, match="younger than the rows"):
        require_older_rules(run, path, root)
    require_older_rules(reference(), path, root)  # a run of the new commit


def test_a_run_with_uncommitted_rules_is_refused(repository):
    root, path, reference, _ = repository
    path.write_text(document(metric="l1"))
    with pytest.raises(VceError, match="younger than the rows"):
        require_older_rules(reference(), path, root)


def test_rows_judged_by_other_rules_are_refused(repository):
    root, path, reference, _ = repository
    with pytest.raises(VceError, match="younger than the rows"):
        require_older_rules(reference(rules="0" * 16), path, root)


def test_an_unknown_commit_is_refused(repository):
    root, path, reference, _ = repository
    with pytest.raises(VceError, match=r"reference\.json: its run's commit 0123"):
        require_older_rules(reference(commit="0123456789" * 4), path, root)


def test_the_pairs_of_a_report_are_those_that_most_methods_explain():
    counts = {"a": 5, "b": 5, "of all images": 9, "screening": 2}
    rows = [
        {"world": "w", "classifier": "f", "method": method, "image": image}
        for method, count in counts.items()
        for image in range(count)
    ]
    assert usual_pairs(pd.DataFrame(rows)) == 5
