"""The rendered faces: determinism, the structural model against exact values, exact twins."""

from dataclasses import fields

import pytest
import torch
from face_rules import cells, exclusive, majority
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import faces
from common.data.faces import ATTRIBUTES, propagate

IDS = tuple(f"face-{k:05d}" for k in range(3000))


@pytest.fixture(scope="module")
def factors():
    return faces.sample(IDS, 0)


@pytest.fixture(scope="module")
def some(factors):
    return factors[torch.arange(80)]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5, unique=True))
def test_a_face_does_not_depend_on_its_batch(rows):
    everything, apart = faces.sample(IDS[:31], 0), faces.sample(tuple(IDS[row] for row in rows), 0)
    for item in fields(apart):
        assert torch.equal(getattr(apart, item.name), getattr(everything, item.name)[rows]), item.name
    assert torch.allclose(faces.render(apart), faces.render(everything)[rows], atol=2e-6)
    assert torch.equal(faces.render(apart), faces.render(apart))


def test_faces_are_images_and_differ(some):
    images = faces.render(some)
    assert images.shape == (80, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    assert all((images[0] - image).abs().mean() > 0.02 for image in images[1:])


def test_worlds_that_differ_in_baldness_share_all_else(factors):
    covered = faces.sample(IDS, 0, bald=0.0)
    assert covered.attribute("bald").sum() == 0 and 0.27 < factors.attribute("bald").float().mean() < 0.33
    for item in fields(covered):
        if item.name != "attributes":
            assert torch.equal(getattr(covered, item.name), getattr(factors, item.name)), item.name
    assert torch.equal(covered.attributes[:, :5], factors.attributes[:, :5])


def test_frequencies_are_those_of_the_model(factors):
    old = factors.attribute("old").bool()
    expected = {
        ("gray", True): 0.8, ("gray", False): 0.1, ("glasses", True): 0.6, ("glasses", False): 0.2,
        ("smile", True): 0.5, ("smile", False): 0.5, ("mustache", True): 0.3, ("mustache", False): 0.3,
    }  # fmt: skip
    for (name, given_old), p in expected.items():
        assert factors.attribute(name)[old == given_old].float().mean().item() == pytest.approx(p, abs=0.045)


# necessity and sufficiency; their exact scores are in tests/common/metrics/test_causal.py


@pytest.mark.parametrize("rule", [majority, exclusive])
def test_what_no_rule_reads_scores_nothing(rule):
    u, _ = cells()
    for name in ("smile", "mustache", "bald"):
        assert torch.equal(rule(propagate(u, {name: 0})), rule(propagate(u, {name: 1})))


# twins


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_twin_differs_in_its_attribute_alone_and_flips_back(some, name):
    other = faces.twin(some, name)
    column = ATTRIBUTES.index(name)
    assert (other.attributes[:, column] == 1 - some.attributes[:, column]).all()
    rest = [k for k in range(6) if k != column]
    assert torch.equal(other.attributes[:, rest], some.attributes[:, rest])
    for item in fields(some):
        if item.name != "attributes":
            assert torch.equal(getattr(other, item.name), getattr(some, item.name)), item.name
    back = faces.twin(other, name)
    assert torch.equal(back.attributes, some.attributes) and torch.allclose(back.wrinkles, some.wrinkles, atol=1e-6)
    assert torch.equal(other.wrinkles, some.wrinkles) == (name != "old")


@pytest.mark.parametrize("value", [0, 1])
def test_a_value_that_a_face_has_changes_nothing(some, value):
    for name in ATTRIBUTES:
        same = some.attribute(name) == value
        set_to = faces.twin(some, name, value)
        assert torch.equal(set_to.attributes[same], some.attributes[same])
        assert torch.equal(faces.render(set_to)[same], faces.render(some)[same])
        assert (set_to.attribute(name) == value).all()


def test_descendants_follow_old_and_only_when_asked(some):
    followed = faces.twin(some, "old", descendants=True)
    expected = propagate(some.uniforms, {"old": 1 - some.attribute("old")}, faces.BALD)
    assert torch.equal(followed.attributes, expected) and not torch.equal(faces.twin(some, "old").attributes, expected)
    assert torch.equal(faces.twin(some, "smile", descendants=True).attributes, faces.twin(some, "smile").attributes)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("old", 0.02, 0.3), ("gray", 0.05, 0.5), ("glasses", 0.05, 0.3), ("smile", 0.02, 0.2), ("mustache", 0.01, 0.2)],
)
def test_an_attribute_shows_in_a_part_of_the_face(factors, name, low, high):
    covered = faces.sample(IDS[:80], 0, bald=0.0)
    area = faces.difference_mask(faces.render(covered), faces.render(faces.twin(covered, name))).flatten(1).mean(1)
    assert (area > 0).all() and low < area.mean() < high


def test_grey_hair_does_not_show_on_a_bald_head(some):
    bald = some.attribute("bald").bool()
    area = faces.difference_mask(faces.render(some), faces.render(faces.twin(some, "gray"))).flatten(1).mean(1)
    assert bald.any() and (area[bald] == 0).all() and (area[~bald] > 0).all()


def test_the_mouth_is_where_a_smile_is(some):
    """The twin's mask of a smile lies below the eyes and within the face."""
    mask = faces.difference_mask(faces.render(some), faces.render(faces.twin(some, "smile")))
    rows = torch.arange(32.0) + 0.5
    height = (mask.sum(2) * rows).sum(1) / mask.sum((1, 2))
    chin, middle = some.centre[:, 1] + some.scale, some.centre[:, 1]
    assert (height > middle).all() and (height < chin).all()
