"""The rating sheet keeps its blind, its key opens it exactly, and scores are means and intervals of what came back."""

import base64
import io
import json
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from common.batches import Shard, write_shard
from common.data import datasets
from common.errors import VceError
from common.explain import CounterfactualBatch
from common.statistics import paired_bootstrap
from papers.svce import rating
from papers.svce.rating import (
    QUESTIONS,
    crossed_bootstrap,
    draw_trials,
    read_all_answers,
    read_answers,
    read_key,
    render_sheet,
    score,
    seal,
)

L2, L15, BLENDED = METHODS = ("apgd/l2/k75", "afw-b/l1.5/k75", "blended")
VOID = {"meta", "input", "img", "br"}


def make_shard(n=5, channels=3, size=32, confidence=(0.3, 0.95)):
    """n samples; all methods take the two confidences along their paths, or one list of paths each."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(n, 2, dtype=torch.long)

    def batch():
        return CounterfactualBatch(
            images=torch.rand(n, 2, channels, size, size, generator=generator),
            strengths=(1.0, 2.5),
            log_confidence=torch.tensor(confidence).log().expand(n, 2),
            distance=torch.ones(n, 2),
            status=np.full((n, 2), "ok"),
            steps=counts,
            forward=counts,
            backward=counts,
        )

    return Shard(
        world="scenes",
        starts="random",
        classifier="l2at",
        seed=0,
        ids=tuple(f"scene-{i:05d}" for i in range(n)),
        source=torch.arange(n) % 5,
        target=(torch.arange(n) + 2) % 5,
        accuracy=0.9,
        source_prediction=torch.arange(n) % 5,
        interventions={},
        batches={method: batch() for method in METHODS},
        traces={},
    )


def make_sheet(trials, shard, names=None, key_sha256="0" * 64):
    originals = datasets.load_ids(shard.world, tuple(trial.image_id for trial in trials), Path("none")).images
    return render_sheet(trials, originals, names or datasets.world(shard.world).class_names, key_sha256)


class Page(HTMLParser):
    """Every start tag with its attributes and enclosing tags, texts by enclosing tag; fails on unbalanced tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.stack, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        self.tags.append((tag, dict(attributes), tuple(self.stack)))
        if tag not in VOID:
            self.stack.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack:
            self.texts[self.stack[-1]][-1] += data

    def all(self, tag, **wanted):
        return [a for name, a, _ in self.tags if name == tag and all(a.get(k) == v for k, v in wanted.items())]


def fill(sheet, rater="ann", rate=lambda trial, option, question: 3):
    """The answers file of a rater, made from the page as its script makes it."""
    page = Page(sheet)
    groups = [{k[5:]: v for k, v in a.items() if k.startswith("data-")} for a in page.all("fieldset")]
    answers = [{**group, "rating": rate(**group)} for group in groups if group]
    return {"key_sha256": page.all("form")[0]["data-key"], "rater": rater, "answers": answers}


@pytest.fixture(scope="module")
def shard():
    return make_shard()


@pytest.fixture
def folder(shard, tmp_path, monkeypatch):
    """What the two commands leave: a shard, sheet.html and key.json of 3 trials."""
    write_shard(shard, tmp_path / "s.safetensors")
    run(monkeypatch, *sheet_arguments(tmp_path))
    return tmp_path


def sheet_arguments(folder, **changes):
    options = {"--shard": folder / "s.safetensors", "--trials": 3, "--seed": 0, "--out": folder, **changes}
    methods = options.pop("--methods", METHODS)
    return ["sheet", "--methods", *methods, *(item for pair in options.items() for item in pair)]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["rating", *map(str, arguments)])
    rating.main()


def save(folder, content, name="a.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# the sheet


def test_same_seed_same_bytes_and_another_seed_another_order(shard):
    def both(seed):
        trials = draw_trials(shard, METHODS, 4, 0.9, seed)
        return seal(trials, 0.9, seed, "f" * 64), make_sheet(trials, shard)

    assert both(0) == both(0)
    (key, sheet), (other_key, other_sheet) = both(0), both(1)
    assert key != other_key and sheet != other_sheet
    assert json.loads(key)["nonce"] != json.loads(other_key)["nonce"]
    orders = {
        seed: [
            (t.image_id, *(f["method"] for f in t.options.values())) for t in draw_trials(shard, METHODS, 5, 0.9, seed)
        ]
        for seed in (0, 1)
    }
    assert orders[0] != orders[1]
    assert {order[0] for order in orders[0]} == set(shard.ids)


def test_the_order_of_a_sample_does_not_depend_on_the_others(shard):
    few, all_ = draw_trials(shard, METHODS, 2, 0.9, 3), draw_trials(shard, METHODS, 5, 0.9, 3)
    assert [trial.options for trial in few] == [trial.options for trial in all_[:2]]


@pytest.mark.parametrize("seed", range(3))
def test_every_picture_is_what_the_key_says(folder, shard, monkeypatch, seed):
    run(monkeypatch, *sheet_arguments(folder, **{"--seed": seed, "--out": folder / str(seed)}))
    key = json.loads((folder / str(seed) / "key.json").read_bytes())["trials"]
    page = Page((folder / str(seed) / "sheet.html").read_text())
    originals = datasets.load_ids("scenes", shard.ids, Path("none")).images
    shown = {picture["alt"]: picture["src"] for picture in page.all("img")}
    assert len(shown) == 3 * 4
    for name, trial in key.items():
        row = shard.ids.index(trial["image_id"])
        expected = {f"Original of trial {name}": originals[row]}
        for letter, facts in trial["options"].items():
            batch = shard.batches[facts["method"]]
            at = batch.strengths.index(facts["strength"])
            assert facts["confidence"] == pytest.approx(batch.confidence[row, at].item())
            expected[f"Option {letter} of trial {name}"] = batch.images[row, at]
        for alt, image in expected.items():
            head, data = shown[alt].split(",")
            assert head == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
                assert picture.format == "PNG" and picture.info == {}
                pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            assert torch.equal(pixels, (image * 255).round().byte())


def test_grey_pictures_and_their_size():
    shard = make_shard(2, channels=1, size=28)
    trials = draw_trials(shard, METHODS, 2, 0.9, 0)
    page = Page(render_sheet(trials, torch.rand(2, 1, 28, 28), ("a",) * 5, "0"))
    picture = page.all("img")[1]
    assert (picture["width"], picture["height"]) == ("224", "224")
    with Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",")[1]))) as image:
        assert image.mode == "L"
        assert torch.equal(torch.from_numpy(np.array(image)), (trials[0].images[0, 0] * 255).round().byte())


@pytest.mark.parametrize(
    ("confidence", "strength", "reached"),
    [((0.3, 0.95), 2.5, True), ((0.92, 0.99), 1.0, True), ((0.2, 0.5), 2.5, False), ((0.95, 0.1), 1.0, True)],
)
def test_the_first_image_at_the_level_else_the_last(confidence, strength, reached):
    (trial,) = draw_trials(make_shard(1, confidence=confidence), METHODS, 1, 0.9, 0)
    assert {(facts["strength"], facts["reached"]) for facts in trial.options.values()} == {(strength, reached)}


def test_the_sheet_keeps_the_blind(folder, shard):
    text = (folder / "sheet.html").read_text()
    for picture in Page(text).all("img"):
        text = text.replace(picture["src"], "")
    words = {part for method in METHODS for part in (method, *method.split("/"))} | set(shard.ids)
    key = json.loads((folder / "key.json").read_bytes())
    words |= {"safetensors", "scenes", "l2at", "afw", "strength", "confidence", key["nonce"], key["shard_sha256"]}
    assert [word for word in words if word in text] == []


def test_the_sheet_names_the_hash_of_the_key(folder):
    text = (folder / "sheet.html").read_text()
    key = read_key(folder / "key.json")
    assert f"sealed as <code>{key.sha256}</code>" in text
    assert Page(text).all("form")[0]["data-key"] == key.sha256


def test_options_stand_in_every_place_equally_often():
    trials = draw_trials(make_shard(600, size=2), METHODS, 600, 0.9, 0)
    places = Counter((letter, facts["method"]) for trial in trials for letter, facts in trial.options.items())
    assert len(places) == 9
    # 600 trials at 1/3: standard deviation 11.5, so five of them
    assert all(abs(count - 200) < 58 for count in places.values())
    orders = Counter(tuple(facts["method"] for facts in trial.options.values()) for trial in trials)
    assert len(orders) == 6 and all(abs(count - 100) < 46 for count in orders.values())


def test_the_page_is_whole_labelled_and_reaches_nothing_outside(folder):
    text = (folder / "sheet.html").read_text()
    page = Page(text)
    inputs, identifiers = page.all("input"), [a["id"] for _, a, _ in page.tags if "id" in a]
    assert len(inputs) == 1 + 3 * 3 * 3 * 5 and len(set(identifiers)) == len(identifiers)
    assert sorted(item["id"] for item in inputs) == sorted(label["for"] for label in page.all("label"))
    assert set(Counter(item["name"] for item in inputs if item["type"] == "radio").values()) == {5}
    inside = [stack for tag, a, stack in page.tags if tag == "input" and a["type"] == "radio"]
    assert all(stack.count("fieldset") == 2 for stack in inside)
    assert len(page.all("legend")) == len(page.all("fieldset"))
    assert all(picture["alt"] for picture in page.all("img"))
    for tag, attributes, _ in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not {"href", "action", "srcset", "onclick", "onload"} & set(attributes)
        assert attributes.get("src", "data:").startswith("data:")
    assert "://" not in text and "url(" not in page.texts["style"][0] and "@import" not in text
    assert not any(word in page.texts["script"][0] for word in ("fetch", "XMLHttp", "import", "WebSocket", "Beacon"))
    assert "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "not those of the paper" in text


BREAKOUT = "</script></title><script>alert(1)</script><img src=x onerror=alert(1)>"


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
@example(BREAKOUT)
@example("\"'><b onmouseover='alert(1)'>")
@example("{{ 7 * 7 }}{% raw %}${alert(1)}`TARGET")
@example("x" * 300)
@example("\u202eسمكة\u2066 &lt;b&gt;")
def test_hostile_class_names_stay_text(name):
    shard = make_shard(1, size=2)
    trials = draw_trials(shard, METHODS, 1, 0.9, 0)
    plain, page = (Page(render_sheet(trials, torch.rand(1, 3, 2, 2), (c,) * 5, "0")) for c in ("plain", name))
    assert page.texts["bdi"] == [name] * 5
    assert page.texts["script"] == plain.texts["script"]
    without = [[(tag, {**a, "src": ""}, stack) for tag, a, stack in p.tags] for p in (plain, page)]
    assert without[0] == without[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": (L15, "unheard")}, "no method unheard; --methods can be apgd/l2/k75"),
        ({"methods": (L15, L15)}, "each once"),
        ({"methods": (L15,)}, "name 2 to 26 methods"),
        ({"methods": (L2, BLENDED)}, "exactly one of them with l1.5"),
        ({"n": 6}, "5 samples; set --trials between 1 and 5"),
        ({"n": 0}, "--trials"),
        ({"level": 1.5}, "--level 1.5"),
        ({"level": float("nan")}, "--level nan"),
    ],
)
def test_a_sheet_that_cannot_be_drawn_is_refused(shard, changes, message):
    arguments = {"methods": METHODS, "n": 3, "level": 0.9, "seed": 0, **changes}
    with pytest.raises(VceError, match=message):
        draw_trials(shard, **arguments)


def test_a_key_that_is_out_is_not_overwritten(folder, monkeypatch, capsys):
    before = (folder / "key.json").read_bytes()
    run(monkeypatch, *sheet_arguments(folder))
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *sheet_arguments(folder, **{"--seed": 1}))
    assert stop.value.code == 2 and "key.json: the key of another sheet" in capsys.readouterr().err
    assert (folder / "key.json").read_bytes() == before


# the answers


def change(place, **fields):
    def apply(content):
        content["answers"][place].update(fields)
        return content

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: "<html>", "a.json: missing or not JSON"),
        (lambda c: "", "a.json: missing or not JSON"),
        (lambda c: "[" * 100_000, "a.json: missing or not JSON"),
        (lambda c: c["answers"], "a.json: missing or not JSON .no object"),
        (lambda c: {**c, "answers": {"T1": 3}}, "`answers` is no list"),
        (lambda c: {**c, "answers": [3]}, "`answers` is no list"),
        (lambda c: {**c, "key_sha256": "e" * 64}, "answers to the sheet of key eeeeeeeeeeee, not"),
        (lambda c: {k: v for k, v in c.items() if k != "key_sha256"}, "answers to the sheet of key None"),
        (lambda c: {**c, "rater": "  "}, "no name"),
        (lambda c: {**c, "rater": 7}, "no name"),
        (lambda c: {**c, "answers": c["answers"][:-1]}, "trial T3, option C, question subtle is not answered"),
        (lambda c: {**c, "answers": []}, "trial T1, option A, question realistic is not answered"),
        (
            lambda c: {**c, "answers": c["answers"] + c["answers"][4:5]},
            "option B, question meaningful is answered twice",
        ),
        (change(0, rating=6), "trial T1, option A, question realistic: rating 6 is no whole number from 1 to 5"),
        (change(0, rating=0), "rating 0 "),
        (change(0, rating=3.5), "rating 3.5 "),
        (change(0, rating="4"), "rating '4' "),
        (change(0, rating=True), "rating True "),
        (change(0, rating=None), "rating None "),
        (change(0, trial="T4"), "trial T4, option A, question realistic is not on the sheet"),
        (change(0, option="D"), "option D"),
        (change(0, option=["A"]), "not on the sheet"),
        (change(0, question="pretty"), "question pretty"),
    ],
)
def test_damaged_answers_are_refused(folder, damage, message):
    key = read_key(folder / "key.json")
    path = save(folder, damage(fill((folder / "sheet.html").read_text())))
    with pytest.raises(VceError, match=message) as caught:
        read_answers(path, key)
    assert str(path) in str(caught.value)


def test_missing_files_are_named(folder):
    key = read_key(folder / "key.json")
    with pytest.raises(VceError, match=r"none\.json: missing"):
        read_answers(folder / "none.json", key)
    with pytest.raises(VceError, match=r"none\.json: missing"):
        read_key(folder / "none.json")


def test_two_files_of_one_rater_are_refused(folder):
    sheet, key = (folder / "sheet.html").read_text(), read_key(folder / "key.json")
    paths = [save(folder, fill(sheet, name), f"{i}.json") for i, name in enumerate(("Ann", "bo", " ann "))]
    with pytest.raises(VceError, match=r"2\.json: rater 'ann' gave .*0\.json too"):
        read_all_answers(paths, key)
    assert read_all_answers(paths[:2], key)["rater"].unique().tolist() == ["Ann", "bo"]


def swap(text):
    return text.replace(L2, "x").replace(L15, L2).replace("x", L15)


@pytest.mark.parametrize(
    "alter",
    [
        swap,
        lambda text: text.replace('"reached": true', '"reached": false', 1),
        lambda text: text.replace("\n", ""),
        lambda text: text + " ",
        lambda text: "{}",
        lambda text: '{"trials": {}, "seal": "0"}',
    ],
)
def test_an_altered_key_is_refused(folder, alter):
    path = folder / "key.json"
    path.write_text(alter(path.read_text()))
    with pytest.raises(VceError, match=r"key\.json: no key, or altered"):
        read_key(path)


def test_a_key_sealed_anew_does_not_open_the_old_answers(folder, shard):
    answers = save(folder, fill((folder / "sheet.html").read_text()))
    trials = draw_trials(shard, METHODS, 3, 0.9, 0)
    (folder / "key.json").write_bytes(seal(trials, 0.8, 0, "f" * 64))
    with pytest.raises(VceError, match="answers to the sheet of key"):
        read_answers(answers, read_key(folder / "key.json"))


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["trial", "option", "question", "rating"]), inner)
        ),
    )
)
def test_any_answers_are_refused_in_one_way(tmp_path_factory, junk):
    key = rating.Key("k", L15, {"T1": {"A": {"method": L15}, "B": {"method": L2}}})
    path = save(tmp_path_factory.getbasetemp(), {"key_sha256": "k", "rater": "ann", "answers": junk})
    with pytest.raises(VceError):
        read_answers(path, key)


# the scores


def test_means_and_differences_by_hand():
    facts = [{"A": L15, "B": L2}, {"A": L2, "B": L15}]
    trials = {f"T{i}": {o: {"method": m, "reached": m == L15} for o, m in t.items()} for i, t in enumerate(facts, 1)}
    key = rating.Key("k", L15, trials)
    given_ = {"ann": {L15: (5, 4), L2: (2, 3)}, "bo": {L15: (4, 4), L2: (4, 1)}}
    rows = [
        (rater, trial, option, question, ratings[fact["method"]][int(trial[1]) - 1])
        for rater, ratings in given_.items()
        for trial, options in trials.items()
        for option, fact in options.items()
        for question in QUESTIONS
    ]
    table = score(pd.DataFrame(rows, columns=["rater", "trial", "option", "question", "rating"]), key)
    assert len(table) == len(QUESTIONS) * 2
    for _, row in table.iterrows():
        assert row["mean"] == {L15: 4.25, L2: 2.5}[row["method"]]
        assert (row["raters"], row["trials"], row["reached"]) == (2, 2, row["method"] == L15)
        assert row["low"] <= row["mean"] <= row["high"]
    l2 = table[table["method"] == L2].iloc[0]
    # differences l2 − l1.5: ann −3, −1; bo 0, −3
    assert l2["difference"] == -1.75
    assert (l2["difference_low"], l2["difference_high"]) == (-3, 0)
    assert table[table["method"] == L15]["difference"].isna().all()


def test_a_planted_preference_is_recovered():
    trials = draw_trials(make_shard(40, size=2), METHODS, 40, 0.9, 0)
    sheet = render_sheet(trials, torch.rand(40, 3, 2, 2), ("a",) * 5, "k")
    key = rating.Key("k", L15, {trial.name: trial.options for trial in trials})
    rng = np.random.Generator(np.random.Philox(key=7))
    level = {L15: 4, L2: 3, BLENDED: 4}

    def rate(trial, option, question):
        """Unbiased noise of ±1 within the scale; only subtlety differs."""
        base = level[key.trials[trial][option]["method"]] if question == "subtle" else 3
        return int(base + rng.integers(-1, 2))

    answers = pd.concat([returned(fill(sheet, f"r{i}", rate)) for i in range(6)])
    table = score(answers, key).set_index(["question", "method"])
    l2 = table.loc["subtle", L2]
    assert l2["difference_low"] <= -1 <= l2["difference_high"] < 0
    for place in (("subtle", BLENDED), ("realistic", L2), ("meaningful", L2)):
        assert table.loc[place, "difference_low"] <= 0 <= table.loc[place, "difference_high"]
    for method, planted in level.items():
        assert table.loc[("subtle", method), "low"] <= planted <= table.loc[("subtle", method), "high"]


def returned(content):
    frame = pd.DataFrame(content["answers"])
    return frame.assign(rater=content["rater"])


def test_one_rater_gets_the_image_clustered_bootstrap():
    values = np.random.default_rng(0).integers(1, 6, (1, 30)).astype(float)
    crossed, clustered = crossed_bootstrap(values), paired_bootstrap(values)
    assert (crossed.mean, crossed.n, crossed.by_seed) == (clustered.mean, clustered.n, clustered.by_seed)
    assert crossed.low == pytest.approx(clustered.low, abs=0.06)
    assert crossed.high == pytest.approx(clustered.high, abs=0.06)


def test_intervals_cover_raters_and_trials():
    """Raters and trials with effects of their own: the interval must hold the true mean 0 nearly 95 times in 100."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        values = rng.normal(size=(12, 1)) + rng.normal(size=(1, 20)) + rng.normal(size=(12, 20))
        estimate = crossed_bootstrap(values, replicates=400)
        covered += estimate.low <= 0 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99
    shared = rng.normal(size=(12, 1)) + np.zeros((12, 20))
    assert paired_bootstrap(shared).high == pytest.approx(paired_bootstrap(shared).low)  # blind to raters
    assert crossed_bootstrap(shared).high - crossed_bootstrap(shared).low > 0.5


@pytest.mark.parametrize("raters", [1, 2])
def test_the_commands_from_sheet_to_scores(folder, monkeypatch, capsys, raters):
    sheet = (folder / "sheet.html").read_text()
    paths = [save(folder, fill(sheet, f"r{i}"), f"{i}.json") for i in range(raters)]
    out = folder / "scores.csv"
    run(monkeypatch, "score", "--key", folder / "key.json", "--answers", *paths, "--out", out)
    printed = capsys.readouterr().out
    table = pd.read_csv(out)
    assert table["mean"].eq(3).all() and table["raters"].eq(raters).all() and table["trials"].eq(3).all()
    assert table["difference"].dropna().eq(0).all() and table["difference"].notna().sum() == 6
    assert ("one rater: the intervals cover the choice of trials" in printed) == (raters == 1)
    assert L15 in printed


def test_an_error_is_one_line_and_code_2(folder, monkeypatch, capsys):
    for arguments, culprit in (
        (sheet_arguments(folder, **{"--methods": (L15, "unheard")}), "s.safetensors: the shard has no method unheard"),
        (sheet_arguments(folder, **{"--trials": 9}), "s.safetensors: the shard has 5 samples"),
        (["score", "--key", folder / "key.json", "--answers", folder / "no.json", "--out", folder / "x"], "no.json"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, *arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and culprit in error and error.count("\n") == 1
    assert not (folder / "x").exists()
