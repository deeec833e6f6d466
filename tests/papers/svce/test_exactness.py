"""The yardstick of claim C1: bisection against a generic solver and by hand, and a table that sees a wrong oracle."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from papers.svce import exactness


@pytest.mark.parametrize("p", [1.1, 1.5, 2.0, 4.0])
def test_bisection_agrees_with_scipy(p):
    rng = np.random.default_rng(0)
    for size in (0.1, 0.6, 1.5):
        w, x = rng.normal(size=6), rng.random(6)
        x[0], x[1] = 0.0, 1.0
        gamma = np.where(w > 0, 1 - x, x)
        ball = {"type": "ineq", "fun": lambda s, size=size: size**p - (np.abs(s) ** p).sum()}
        found = minimize(lambda s, w=w: -np.abs(w) @ s, np.minimum(gamma, size / 12), bounds=[(0, g) for g in gamma],
                         constraints=[ball], options={"maxiter": 500, "ftol": 1e-12})  # fmt: skip
        best = exactness.bisection(torch.tensor(w)[None], torch.tensor(x)[None], torch.tensor([size]).double(), p)
        assert best.item() == pytest.approx(-found.fun, rel=1e-4)


def test_bisection_for_p_1_is_the_knapsack():
    w, x = torch.tensor([[3.0, -2.0, 1.0, 5.0]]), torch.tensor([[0.6, 0.5, 0.2, 1.0]])  # rooms .4, .5, .8, 0
    for epsilon, best in ((0.3, 0.9), (0.6, 1.2 + 0.4), (1.0, 1.2 + 1.0 + 0.1), (9.0, 1.2 + 1.0 + 0.8)):
        assert exactness.bisection(w, x, torch.tensor([epsilon]), 1.0).item() == pytest.approx(best, rel=1e-6)


def test_exactness_table_sees_an_inexact_oracle(monkeypatch):
    honest = exactness.measure_exactness(4, 48, 0)
    assert honest["gap"].max() < 1e-5 and len(honest) == 4 * 5 * 2
    monkeypatch.setattr(exactness, "lmo", lambda w, x, e, p, lmo=exactness.lmo: 0.999 * lmo(w, x, e, p))
    assert exactness.measure_exactness(4, 48, 0)["gap"].min() > 5e-4
