"""Corruptions against closed forms, survival against a loop, and the job on a shard by hand."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import nn

from common.batches import Shard, read_shard, write_shard
from common.data import datasets, faces
from common.errors import VceError
from common.explain import Streams, finish
from papers.disc import corruptions
from papers.disc.corruptions import CORRUPTIONS, corrupted, survival, survival_rows

# torchvision 0.29, which is pinned, announces that its JPEG codec will move
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

N, SHAPE = 6, (3, 16, 16)
RNG = Streams(0, tuple("abcdef"), (1, 0, 1, 0, 1, 0))
SEVERITIES = (1, 3, 5)


class Brightness(nn.Module):
    """Class 1 where the image's mean exceeds a half."""

    def forward(self, x):
        mean = x.flatten(1).double().mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


class Linear(nn.Module):
    """Two classes; the logits are linear in the pixels."""

    def __init__(self, shape=SHAPE):
        super().__init__()
        self.w = torch.randn(2, *shape, generator=torch.Generator().manual_seed(5)).flatten(1)

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.w.T


@pytest.fixture
def images():
    return torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(1))


def path(originals, target, *changes):
    """N×S images: the originals plus each change; its strengths are 0.5, 0.6, ..."""
    strengths = tuple(0.5 + 0.1 * j for j in range(len(changes)))
    paths = torch.stack([(originals + change).clamp(0, 1) for change in changes], 1)
    return finish(originals, paths, target, classifier=Linear(originals.shape[1:]), strengths=strengths)


def shard_by_hand(originals, ids, source):
    target, g = 1 - source, torch.Generator().manual_seed(3)
    changes = [0.1 * torch.randn(originals.shape, generator=g) for _ in range(2)]
    names = ("iso", "inr+dep", "iso@inr+dep", "twin", "random", "class-mean", "nearest-real", "identity")
    return Shard(
        world="faces-smile", starts="pairs", classifier="companion", seed=4, ids=ids, source=source, target=target,
        accuracy=1.0, source_prediction=source, interventions={},
        batches={name: path(originals, target, *(k * change for change in changes)) for k, name in enumerate(names)},
        traces={},
    )  # fmt: skip


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.75), (3, 0.4), (5, 0.15)])
def test_contrast_shrinks_around_each_channels_own_mean(images, severity, factor):
    found = corrupted(images, "contrast", severity, RNG)
    assert torch.allclose(found.mean((2, 3)), images.mean((2, 3)), atol=1e-6)
    for i in range(N):
        for c in range(3):
            expected = images[i, c].mean() + factor * (images[i, c] - images[i, c].mean())
            assert torch.allclose(found[i, c], expected, atol=1e-6)


@pytest.mark.parametrize(("severity", "added"), [(1, 0.05), (3, 0.15), (5, 0.3)])
def test_brightness_is_added_and_clipped(images, severity, added):
    found = corrupted(images, "brightness", severity, RNG)
    dark = images <= 1 - added
    assert torch.allclose(found[dark], images[dark] + added) and (found[~dark] == 1).all()
    assert 0 < dark.float().mean() < 1


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.4), (3, 0.7), (5, 1.0)])
def test_blur_is_gaussian_and_keeps_constants(images, severity, sigma):
    found = corrupted(images, "blur", severity, RNG)
    expected = gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4.0)
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    constant = torch.full((N, *SHAPE), 0.3)
    assert torch.allclose(corrupted(constant, "blur", severity, RNG), constant, atol=1e-6)


def test_jpeg_is_deterministic_and_reads_one_channel(images):
    for x in (images, images[:, :1]):
        found = corrupted(x, "jpeg", 5, RNG)
        assert found.shape == x.shape and torch.equal(found, corrupted(x, "jpeg", 5, RNG))
        assert torch.equal((255 * found).round() / 255, found)
        assert torch.equal(found[2:3], corrupted(x[2:3], "jpeg", 5, RNG[[2]]))
    # a block of the mean grey, to which 127.6 is rounded, has no coefficient to lose
    assert torch.equal(corrupted(torch.full((N, *SHAPE), 127.6 / 255), "jpeg", 1, RNG) * 255, 0 * images + 128)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_severities_are_ordered_and_stay_in_the_box(name, channels):
    x = faces.render(faces.sample(RNG.image_ids, 0))[:, :channels]
    found = [corrupted(x, name, severity, RNG) for severity in SEVERITIES]
    distance = torch.stack([(y - x).abs().flatten(1).mean(1) for y in found])
    assert (distance[0] > 0).all() and (distance.diff(dim=0) > 0).all()
    assert all(y.min() >= 0 and y.max() <= 1 and y.dtype == x.dtype for y in found)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=8), severity=st.sampled_from(SEVERITIES))
def test_noise_does_not_depend_on_the_batch(rows, severity):
    x = torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(2))
    everyone = corrupted(x, "noise", severity, RNG)
    assert torch.equal(corrupted(x[rows], "noise", severity, RNG[rows]), everyone[rows])


def test_noise_has_its_size_and_differs_between_images_and_severities():
    grey = torch.full((N, 3, 64, 64), 0.5)
    noise = torch.stack([corrupted(grey, "noise", severity, RNG) - 0.5 for severity in SEVERITIES])
    assert noise.flatten(1).std(1).tolist() == pytest.approx([0.04, 0.08, 0.1], rel=0.02)
    assert torch.corrcoef(noise.flatten(0, 1).flatten(1)).fill_diagonal_(0).abs().max() < 0.05


@pytest.mark.parametrize(("name", "severity"), [("fog", 1), ("noise", 2), ("jpeg", 0)])
def test_unknown_corruptions_and_severities_are_named(images, name, severity):
    with pytest.raises(VceError, match=r"fog.*noise, blur|severity [02].*1, 3, 5"):
        corrupted(images, name, severity, RNG)


def test_survival_of_a_classifier_that_reads_the_mean():
    means = torch.tensor([0.15, 0.3, 0.42, 0.47, 0.52, 0.6])
    ripple = 0.1 * torch.tensor([1.0, -1.0]).repeat(SHAPE[2] // 2).expand(SHAPE)
    x, target = means.view(-1, 1, 1, 1) + ripple, torch.tensor([0, 0, 0, 0, 1, 0])
    found = survival(Brightness(), x, target, RNG)
    assert set(found) == {(name, severity) for name in CORRUPTIONS for severity in SEVERITIES}
    for severity in SEVERITIES:
        assert found["contrast", severity].tolist() == [1, 1, 1, 1, 1, 0]
        assert found["blur", severity].tolist() == [1, 1, 1, 1, 1, 0]
    assert found["brightness", 1].tolist() == [1, 1, 1, 0, 1, 0]
    assert found["brightness", 3].tolist() == [1, 1, 0, 0, 1, 0]
    assert found["brightness", 5].tolist() == [1, 0, 0, 0, 1, 0]


def test_survival_of_a_linear_classifier_is_that_of_a_loop(images):
    model, target = Linear(), torch.tensor([1, 0, 1, 0, 1, 0])
    found = survival(model, images, target, RNG)
    for (name, severity), values in found.items():
        for i in range(N):
            single = corrupted(images[[i]], name, severity, RNG[[i]])
            assert values[i].item() == float(model(single)[0].argmax() == target[i])
    assert 0 < torch.stack(list(found.values())).mean() < 1


def test_rows_of_a_shard_are_those_of_a_loop(images):
    source = torch.tensor([0, 1, 0, 1, 1, 0])
    shard, model = shard_by_hand(images, tuple("abcdef"), source), Linear()
    rows = survival_rows(shard, model, images)
    keys = ["world", "starts", "seed", "method", "strength", "image", "corruption", "severity"]
    assert not rows.duplicated(keys).any() and not rows.isna().any(axis=None)
    paths = {"real": 1, "iso": 2, "inr+dep": 2, "iso@inr+dep": 2, "twin": 1}  # images per method and sample
    expected = {name: s * N * 3 * (4 if "+dep" in name else 5) for name, s in paths.items()}
    assert rows["method"].value_counts().to_dict() == expected
    prepared = rows["method"].str.contains("+dep", regex=False)
    assert set(rows[~prepared]["corruption"]) == set(CORRUPTIONS) == {"noise", *rows[prepared]["corruption"]}
    assert "noise" not in set(rows[prepared]["corruption"])
    assert set(rows[rows["method"] == "twin"]["strength"]) == {shard.batches["twin"].strengths[-1]}
    some = pd.concat([rows[rows["corruption"] == "noise"], rows.sample(60, random_state=0)])
    for row in some.itertuples():
        i = shard.ids.index(row.image)
        if row.method == "real":
            x, target = images[i], source[i]
        else:
            j = shard.batches[row.method].strengths.index(row.strength)
            x, target = shard.batches[row.method].images[i, j], shard.target[i]
        single = corrupted(x[None], row.corruption, row.severity, Streams(4, (row.image,), (int(target),)))
        p = model(x[None]).softmax(1)[0, target].item()
        assert row.survives == float(model(single)[0].argmax() == target)
        assert row.confidence == pytest.approx(p, abs=1e-5) and row.status == ("ok" if p > 0.5 else "not_flipped")
    assert rows["survives"].nunique() == rows["status"].nunique() == 2


def run(tmp_path, monkeypatch, *shards):
    """The job on some shards, of which each becomes a file; the companion of every file is linear."""
    model = Linear((3, faces.SIZE, faces.SIZE))
    monkeypatch.setattr(corruptions, "load_companion", {tmp_path / "nets" / "faces-smile-4.safetensors": model}.get)
    for k, shard in enumerate(shards):
        write_shard(shard, tmp_path / f"{k}.safetensors")
    files = [str(tmp_path / f"{k}.safetensors") for k in range(len(shards))]
    out = tmp_path / "rows.parquet"
    argv = ["job", "--shards", *files, "--companions", str(tmp_path / "nets"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    corruptions.main()
    return pd.read_parquet(out), model


def test_the_job_reads_pairs_and_variants(tmp_path, monkeypatch, capsys):
    ids = tuple(f"face-{i:05d}" for i in range(4))
    faced = datasets.load_ids("faces-smile", ids, tmp_path)
    shard = shard_by_hand(faced.images, ids, faced.labels)
    variants, other = replace(shard, starts="screening"), replace(shard, starts="graded")
    rows, model = run(tmp_path, monkeypatch, shard, variants, other)
    own = survival_rows(read_shard(tmp_path / "0.safetensors"), model, faced.images)
    assert len(rows) == 2 * len(own)
    for starts, part in rows.groupby("starts"):
        pd.testing.assert_frame_equal(part.reset_index(drop=True), own.assign(starts=starts))
    for wrong, message in (((other,), "none starts from"), ((shard, shard), "given twice")):
        with pytest.raises(SystemExit):
            run(tmp_path, monkeypatch, *wrong)
        assert message in capsys.readouterr().err
