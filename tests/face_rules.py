"""The two decision rules of the contrastive spec (§9.1) on the faces' structural model, and all of its cells."""

import itertools

import torch


def cells():
    """One point in every cell of the uniforms of old, gray and glasses, with its weight; the others stay above 1."""
    cuts = {"old": (0.5,), "gray": (0.1, 0.8), "glasses": (0.2, 0.6)}
    parts = []
    for name in cuts:
        edges = (0.0, *cuts[name], 1.0)
        parts.append([((a + b) / 2, b - a) for a, b in itertools.pairwise(edges)])
    points, weights = [], []
    for choice in itertools.product(*parts):
        points.append([u for u, _ in choice] + [0.99] * 3)
        weights.append(choice[0][1] * choice[1][1] * choice[2][1])
    return torch.tensor(points), torch.tensor(weights)


def majority(attributes):
    return (attributes[:, :3].sum(1) >= 2).long()


def exclusive(attributes):
    return attributes[:, 1] ^ attributes[:, 2]
