"""DISC end to end on rendered faces: a classifier of smiles, its companions, and an untrained prior."""

import numpy as np
import pytest
import torch

from common.classifiers.companion import NearAnyCentroid, PredictedError, Recipe, train_companion
from common.data import faces
from common.explain import Streams
from papers.disc.explain import explain
from papers.disc.method import Schedule

N, BRIEF = 6, Schedule(fit=160, steer=120)


@pytest.fixture(scope="module")
def problem():
    factors = faces.sample(tuple(f"face-{k:05d}" for k in range(1000 + N)), 0)
    x, y = faces.render(factors), factors.attribute("smile")
    companion = train_companion(x[:1000], y[:1000], ("serious", "smiling"), Recipe(epochs=5), seed=0)
    twins = faces.render(faces.twin(factors[torch.arange(1000, 1000 + N)], "smile"))
    return companion, x[1000:], y[1000:], twins


@pytest.mark.parametrize(("auxiliary", "weight"), [(None, 0.0), (NearAnyCentroid, 0.5), (PredictedError, 0.3)])
def test_faces_are_drawn_and_then_turned(problem, auxiliary, weight):
    companion, x, y, _ = problem
    rng = Streams(0, tuple(f"face-{1000 + k}" for k in range(N)), tuple((1 - y).tolist()))
    batch = explain(
        x, y, 1 - y, classifier=companion, rng=rng, strengths=(0.5, 0.75), schedule=BRIEF,
        auxiliary=auxiliary and auxiliary(companion), lambdas=(1.0, weight, 2.0), bound=5e-3,
    )  # fmt: skip
    error = (batch.reference - x).square().flatten(1).mean(1)
    assert (error < 5e-3).all() and (batch.status != "diverged").all()
    assert (batch.confidence[:, 1] >= 0.75 - 1e-6).float().mean() > 0.6
    assert np.isin(batch.status, ("ok", "not_flipped")).all() and (batch.distance > 0).all()


def test_a_companion_pulls_towards_what_it_knows(problem):
    """At equal confidence, the counterfactuals are nearer to a centroid with the manifold term than without."""
    companion, x, y, _ = problem
    rng = Streams(0, tuple(f"face-{1000 + k}" for k in range(N)), tuple((1 - y).tolist()))
    settings = {"strengths": (0.75,), "schedule": BRIEF, "bound": 5e-3, "lambdas": (1.0, 0.5, 2.0)}
    plain = explain(x, y, 1 - y, classifier=companion, rng=rng, **settings)
    pulled = explain(x, y, 1 - y, classifier=companion, rng=rng, auxiliary=NearAnyCentroid(companion), **settings)
    near, far = (
        NearAnyCentroid(companion)([companion.read(batch.images[:, 0])[1]]).mean() for batch in (pulled, plain)
    )
    assert near < far
