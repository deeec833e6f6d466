"""A shard on disk: bit-identical there and back, and refused when damaged."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from common.batches import Shard, read_shard, read_shards, write_shard, write_shards
from common.errors import VceError
from common.explain import CounterfactualBatch
from common.tensors import read_tensors, write_tensors

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
            "identity": batch(
                (0.0,),
                1,
                saliency=torch.rand(N, 4, 4),
                latent_shift=torch.rand(N, 1, 5),
                reference=torch.rand(N, 1, 4, 4),
            ),
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
    fix = "give the file of a shard" if damage == "foreign" else "delete it"
    with pytest.raises(VceError, match=rf"s\.safetensors: not a shard file \(.+\); {fix}") as caught:
        read_shard(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["world", "starts", "classifier", "seed", "ids", "accuracy", "strengths"])
def test_a_header_without_one_of_its_facts_is_refused(shard, tmp_path, key):
    path = tmp_path / "s.safetensors"
    write_shard(shard, path)
    header, tensors = read_tensors(path, "shard")
    del header["shards"][0][key]
    write_tensors(path, "shard", tensors, header)
    with pytest.raises(VceError, match=rf"s\.safetensors: not a shard file \(it lacks '{key}'\)"):
        read_shard(path)


@pytest.mark.parametrize("key", ["0|source", "1|target", "1|source_prediction", "1|identity|status"])
def test_a_file_without_one_of_its_tensors_is_refused(shard, tmp_path, key):
    path = tmp_path / "s.safetensors"
    write_shards([shard, shard], path)
    header, tensors = read_tensors(path, "shard")
    del tensors[key]
    write_tensors(path, "shard", tensors, header)
    with pytest.raises(VceError, match=rf"s\.safetensors: not a shard file \(it lacks '{re.escape(key[2:])}'\)"):
        read_shards(path)


@pytest.mark.parametrize("headers", [[], ["one too few"]])
def test_tensors_of_a_shard_without_header_are_refused(shard, tmp_path, headers):
    path = tmp_path / "s.safetensors"
    write_shards([shard, shard], path)
    header, tensors = read_tensors(path, "shard")
    write_tensors(path, "shard", tensors, {"shards": header["shards"][: len(headers)]})
    with pytest.raises(VceError, match=r"s\.safetensors: not a shard file"):
        read_shards(path)


def test_shards_of_one_file_keep_their_order_and_do_not_mix(shard, tmp_path):
    other = replace(shard, seed=5, target=shard.target + 1, interventions={}, traces={})
    other = replace(other, batches={"identity": batch((0.0, 1.0), 9)})
    third = replace(shard, ids=("scene-7", "scene-8", "scene-9"))
    shards = [shard, other, *(replace(third, seed=seed) for seed in range(10))]  # numbers of two digits
    write_shards(shards, tmp_path / "s.safetensors")
    back = read_shards(tmp_path / "s.safetensors")
    assert len(back) == 12
    for one, two in zip(shards, back, strict=True):
        for item in fields(one):
            assert same(getattr(one, item.name), getattr(two, item.name)), item.name


@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_file_of_several_shards_is_not_one_shard(shard, tmp_path, count):
    write_shards([shard] * count, tmp_path / "s.safetensors")
    with pytest.raises(VceError) as caught:
        read_shard(tmp_path / "s.safetensors")
    said = str(caught.value)
    assert said == f"{tmp_path}/s.safetensors: holds {count} shards where one is expected; read it with read_shards"
    assert len(read_shards(tmp_path / "s.safetensors")) == count
