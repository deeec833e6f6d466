"""A shard on disk: bit-identical there and back, and refused when damaged."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from common.batches import Shard, read_shard, write_shard
from common.errors import VceError
from common.explain import CounterfactualBatch

N = 3


def batch(strengths, seed=0, **extra):
    generator = torch.Generator().manual_seed(seed)
    s = len(strengths)
    steps = torch.arange(N * s).view(N, s)
    return CounterfactualBatch(
        images=torch.rand(N, s, 1, 4, 4, generator=generator),
        strengths=strengths,
        log_confidence=torch.tensor([-0.1, -torch.inf, -3.0])[:, None].expand(N, s),  # not contiguous
        distance=torch.rand(N, s, generator=generator),
        status=np.array([["ok"] * s, ["diverged"] * s, ["not_flipped"] * s]),
        steps=steps,
        forward=steps,  # one tensor under two names
        backward=steps,
        **extra,
    )


@pytest.fixture
def shard():
    facts = {
        "world": "scenes",
        "starts": "pairs",
        "classifier": "l2at",
        "seed": 2,
        "ids": ("scene-1", "scene-2", "scene-3"),
        "source": torch.tensor([0, 1, 2]),
        "target": torch.tensor([1, 2, 0]),
        "accuracy": 0.97,
        "source_prediction": torch.tensor([0, 1, 1]),
        "interventions": {"label": torch.tensor([1, 2, 0]), "palette": torch.tensor([0, 1, 2])},
        "batches": {
            "afw-b/l1.5/k75": batch((1.0, 1.75)),
            "identity": batch((0.0,), 1, saliency=torch.rand(N, 4, 4), latent_shift=torch.rand(N, 1, 5)),
        },
        "traces": {"afw-b/l1.5/k75": torch.rand(N, 2, 7)},
    }
    return Shard(**facts)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, CounterfactualBatch):
        return all(same(getattr(a, item.name), getattr(b, item.name)) for item in fields(a))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    return bool(np.all(a == b))


def test_round_trip_is_exact(shard, tmp_path):
    write_shard(shard, tmp_path / "s.safetensors")
    back = read_shard(tmp_path / "s.safetensors")
    for item in fields(shard):
        assert same(getattr(shard, item.name), getattr(back, item.name)), item.name


def test_same_shard_same_bytes_and_no_leftovers(shard, tmp_path):
    for name in ("a", "b"):
        write_shard(shard, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_one_bit_more_is_seen(shard, tmp_path):
    write_shard(shard, tmp_path / "a.safetensors")
    other = replace(shard, target=shard.target + 1)
    write_shard(other, tmp_path / "b.safetensors")
    assert not same(read_shard(tmp_path / "b.safetensors").target, shard.target)


@pytest.mark.parametrize("damage", ["truncated", "html", "empty", "foreign", "missing"])
def test_damaged_files_are_refused(shard, tmp_path, damage):
    path = tmp_path / "s.safetensors"
    write_shard(shard, path)
    whole = path.read_bytes()
    if damage == "foreign":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": whole[:-8], "html": b"<html>not found</html>", "empty": b""}[damage])
    with pytest.raises(VceError, match=r"s\.safetensors"):
        read_shard(path)
