"""Job: measure the maps of a file of shards: rows of the long table, what every map is worth (M1, M3, M4, M6), how few
pixels suppress the class under each evaluating in-fill (M2), what each in-fill restores (M5), and the judges beside the
classifier.

python -m papers.fido.measure --shards F --settings '{...}' --systems DIR --infillers DIR --splits DIR --oracles DIR
    --out DIR
"""

import argparse
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard, read_shards
from common.classifiers.base import Classifier
from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.oracles import Panel
from common.data import datasets
from common.errors import VceError, one_line_errors
from common.explain import CounterfactualBatch, Streams
from common.files import atomic_path
from common.generators.inpainting import BLOCK_DRAWS, block_masks, hidden_error
from common.measure import judge_accuracy, measure_shard, oracle_gate
from common.progress import Progress
from common.results import PANEL
from common.scales import parse_recipe
from papers.fido import metrics, regions
from papers.fido.explain import BATCH, chunks, class_score
from papers.fido.fills import Fills
from papers.fido.method import log_odds
from papers.fido.names import OBJECTIVES

COUNTS = (0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # pixels dropped, of 1,024
ROAD_SHARES = (0.1, 0.2, 0.3, 0.5)  # of the pixels
DRAWS, FEW_DRAWS = 8, 2  # of masks from q(z), of random masks per image; of these for slow in-fills
BLOCK = 0.4  # share of the image that block masks hide


@dataclass(frozen=True)
class Settings:
    """Which in-fills evaluate. `suppress`: by start set; of the `slow` ones the first `few` images and the methods
    named. `recover`: by world, those that are scored under random masks, slow ones on the first `few` images."""

    suppress: dict[str, list[str]]
    slow: dict[str, list[str]]
    few: int
    recover: dict[str, list[str]]


@dataclass(frozen=True)
class Explained:
    """N images that a shard explains, with their labels and object masks, and what explains them."""

    images: datasets.Images
    classifier: Classifier
    fills: Fills
    seed: int

    def __getitem__(self, rows: slice) -> "Explained":
        part = self.images
        chosen = datasets.Images(part.images[rows], part.labels[rows], part.ids[rows], part.masks[rows])
        return Explained(chosen, self.classifier, self.fills, self.seed)

    @property
    def rng(self) -> Streams:
        return Streams(self.seed, self.images.ids, tuple(self.images.labels.tolist()))

    @functools.cached_property
    def boxes(self) -> Tensor:
        return regions.bounding_boxes(self.images.masks > 0.5)

    @functools.cached_property
    def original(self) -> Tensor:
        """N×1×K logits of the originals."""
        return self.logits(self.images.images[:, None])

    @torch.no_grad()
    def filled(self, keep: Tensor, fill: str) -> Tensor:
        """N×M×C×H×W images after what N×M×H×W masks hide is in-filled."""
        x, found = self.images.images, []
        for rows in chunks(len(x), keep.shape[1], x[0, 0].numel()):
            rng = self.rng[range(rows.start, rows.stop)]
            found.append(metrics.filled(x[rows], keep[rows], self.fills[fill], rng))
        return torch.cat(found)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """N×M×K of N×M×C×H×W images."""
        parts = [self.classifier(x) for x in images.flatten(0, 1).split(BATCH)]
        return torch.cat(parts).unflatten(0, images.shape[:2])

    def log_odds(self, logits: Tensor) -> Tensor:
        """N×M log-odds of the labels in N×M×K logits."""
        labels = self.images.labels.repeat_interleave(logits.shape[1])
        return log_odds(logits.flatten(0, 1), labels).view(logits.shape[:2])

    def scores(self, keep: Tensor, fill: str) -> Tensor:
        """N×M log-odds of the labels after what N×M×H×W masks hide is in-filled."""
        return self.log_odds(self.logits(self.filled(keep, fill)))


@torch.no_grad()
def map_metrics(name: str, shown: Tensor, rank: Tensor, here: Explained) -> dict[str, Tensor]:
    """What the N×H×W maps `shown` of a method, their pixels in order of `rank`, are worth: N values each, NaN where a
    map has none.

    `area`, `empty`, `full`: of the MAP mask · `place`: average precision of the map against the object's mask (G3) ·
    `overflow` of it beyond the object's box, `overflow_object` beyond its
    mask (M1), `localisation` error (M3), `metric` (M4); the same `…_matched` at the top tenth of the pixels · `kept_…`:
    p(c) of what the MAP mask keeps under an in-fill, `matched_…` of the top tenth, `half_…` of a random half of the MAP
    mask (M6) · of searched maps the `entropy` of θ in bits, E_q[s] (`expected`) beside s of the MAP mask (`map_score`),
    under the in-fill that was searched with.
    """
    method, *rest = name.split("/")
    x, objects = here.images.images, here.images.masks
    mask, top = regions.map_mask(method, shown, rank), regions.top_mask(rank)
    box = regions.box_masks(here.boxes, *shown.shape[1:])
    score = class_score(here.classifier, here.images.labels)
    found = {
        "area": mask.flatten(1).mean(1),
        "empty": (mask.flatten(1).sum(1) == 0).float(),
        "full": (mask.flatten(1).mean(1) == 1).float(),
        "pointing": metrics.pointing(rank, objects),
        "place": metrics.average_precision(rank, objects),
        "original": torch.sigmoid(here.log_odds(here.original))[:, 0],
    }
    for suffix, chosen in (("", mask), ("_matched", top)):
        boxes = regions.bounding_boxes(chosen > 0)
        found |= {
            f"overflow{suffix}": metrics.overflow(chosen, box),
            f"overflow_object{suffix}": metrics.overflow(chosen, objects),
            f"localisation{suffix}": metrics.localisation_error(boxes, here.boxes),
            f"metric{suffix}": metrics.saliency_metric(x, boxes, score),
        }
    half = mask * (here.rng.uniform(shown.shape[1:], "half") < 0.5)
    for fill in ("net", "background"):
        p = torch.sigmoid(here.scores(torch.stack([mask, top, half], 1), fill))
        found |= {f"{what}_{fill}": p[:, k] for k, what in enumerate(("kept", "matched", "half"))}
    missing = torch.full((len(x),), torch.nan)
    found |= {"entropy": missing, "expected": missing, "map_score": missing}
    if method in OBJECTIVES:
        theta = shown if method in ("ssr", "bbmp") else 1 - shown
        drawn = (here.rng.uniform((DRAWS, *shown.shape[1:]), "q") < theta[:, None]).float()
        scores = here.scores(torch.cat([drawn, (theta > regions.SALIENT).float()[:, None]], 1), rest[0])
        found |= {"entropy": metrics.entropy(theta), "expected": scores[:, :-1].mean(1), "map_score": scores[:, -1]}
    return found


def deletion_scores(rank: Tensor, here: Explained, fill: str, counts: Tensor) -> Tensor:
    """s_k, N×K: the log-odds after the first k pixels in order of N×H×W `rank` are dropped and in-filled afresh, for K
    `counts`, from none to all of them; whatever a map was optimised for."""
    if counts[-1] != rank[0].numel():
        raise VceError(f"suppression: made for images of {counts[-1]} pixels, not {rank[0].numel()}; mend COUNTS")
    return torch.cat([here.log_odds(here.original), here.scores(regions.without_top(rank, counts[1:]), fill)], 1)


def perturbation_curves(rank: Tensor, here: Explained, deleted: Tensor) -> dict[str, Tensor]:
    """RISE's areas, of p(c) while the most salient pixels are replaced by the mean colour (`deletion`, from the
    log-odds N×K at `COUNTS`) or brought back into the blurred image (`insertion`), and ROAD's accuracies after shares
    of the most (`road_morf`) and of the least salient pixels (`road_lerf`) were imputed, mean over `ROAD_SHARES`."""
    counts = torch.tensor(COUNTS)
    inserted = here.scores(1 - regions.without_top(rank, counts), "blur")
    found = {
        "deletion": metrics.area_under(torch.sigmoid(deleted), counts),
        "insertion": metrics.area_under(torch.sigmoid(inserted), counts),
    }
    shares = (torch.tensor(ROAD_SHARES) * rank[0].numel()).round()
    orders = {"road_morf": rank, "road_lerf": rank[0].numel() - 1 - rank}
    for name, order in orders.items():
        seen = here.logits(here.filled(regions.without_top(order, shares), "road")).argmax(2)
        found[name] = (seen == here.images.labels[:, None]).float().mean(1)
    return found


def recovery(here: Explained, fill: str, draws: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """M5: by kind of random mask, p(c) after in-filling (`probability`, mean over masks, and `median`), whether the
    image is still predicted correctly, and was before, and the mean error of the in-fill at hidden pixels."""
    x, labels, size = here.images.images, here.images.labels, tuple(here.images.masks.shape[1:])
    blocks = here.rng.uniform((DRAWS, BLOCK_DRAWS), "block mask").flatten(0, 1)
    masks = {
        "iid": (here.rng.uniform((DRAWS, *size), "iid mask") < 0.5).float(),
        "block": block_masks(blocks, size, BLOCK).unflatten(0, (len(x), DRAWS)),
    }
    for kind, all_masks in masks.items():
        keep = all_masks[:, :draws]
        filled = here.filled(keep, fill)
        logits = here.logits(filled)
        p, correct = torch.sigmoid(here.log_odds(logits)), (logits.argmax(2) == labels[:, None]).float()
        yield (
            kind,
            {
                "probability": p.mean(1),
                "median": p.median(1).values,
                "correct": correct.mean(1),
                "correct_original": (here.original.argmax(2)[:, 0] == labels).float(),
                "error": hidden_error(filled, x, keep).mean(1),
            },
        )


def _table(shard: Shard, values: dict[str, Tensor], n: int | None = None, **facts: str | float) -> pd.DataFrame:
    """Rows of the first n samples of a shard: who, what, and the values."""
    table = pd.DataFrame({name: value.numpy() for name, value in values.items()})
    correct = (shard.source_prediction == shard.source)[:n].numpy()
    identity = {"world": shard.world, "starts": shard.starts, "classifier": shard.classifier, "seed": shard.seed}
    return table.assign(
        **identity,
        image=np.array(shard.ids[:n], dtype=object),
        stratum=np.where(correct, "correct", "misclassified"),
        **{"strength": 0.0, **facts},
    )


def statuses(batch: CounterfactualBatch, values: dict[str, Tensor]) -> np.ndarray:
    """Of N maps: `diverged` where no in-fill was a number, `empty` or `full` by its MAP mask, else `ok`."""
    found = np.where(values["empty"].numpy() > 0, "empty", np.where(values["full"].numpy() > 0, "full", "ok"))
    return np.where(batch.status[:, 0] == "diverged", "diverged", found)


def measured_shard(shard: Shard, here: Explained, settings: Settings) -> dict[str, list[pd.DataFrame]]:
    """The tables of a shard by name, method by method."""
    maps, pixels = [], []
    for name, batch in shard.batches.items():
        rank = regions.ranks(batch.saliency, here.rng)
        values = map_metrics(name, batch.saliency, rank, here)
        bad = shard.traces[name][:, 0] if name in shard.traces else torch.zeros(len(shard.ids))
        counts, everyone = torch.tensor(COUNTS), len(shard.ids)
        fills = dict.fromkeys(settings.suppress.get(shard.starts, []), (everyone, counts))
        if shard.starts == "pairs" and shard.classifier == "cnn":
            slow = [fill for fill in settings.recover[shard.world] if name in settings.slow.get(fill, [])]
            fills |= dict.fromkeys(slow, (settings.few, torch.cat([counts[:-1:2], counts[-1:]])))
        scores = {fill: deletion_scores(rank[:n], here[slice(0, n)], fill, at) for fill, (n, at) in fills.items()}
        for fill, s in scores.items():
            n, at = fills[fill]
            for quantile in metrics.QUANTILES:
                found = {"pixels": metrics.suppression_pixels(s, at, quantile)}
                pixels.append(_table(shard, found, n, method=name, fill=fill, strength=quantile))
        if "mean" in scores:
            values |= perturbation_curves(rank, here, scores["mean"])
        maps.append(_table(shard, {**values, "bad_fills": bad}, method=name).assign(status=statuses(batch, values)))
    return {"maps": maps, "suppression": pixels}


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="a file of shards")
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON: which in-fills evaluate what")
    parser.add_argument("--systems", type=Path, required=True, help="folder of the classifiers of this seed")
    parser.add_argument("--infillers", type=Path, required=True, help="folder of the learned in-fillers")
    parser.add_argument("--splits", type=Path, required=True, help="folder of the split tables")
    parser.add_argument("--oracles", type=Path, required=True, help="folder of the judges")
    parser.add_argument("--panel", required=True, help="world whose judges are asked")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data files")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows, maps, suppression, ... .parquet")
    args = parser.parse_args()
    settings = parse_recipe(Settings, args.settings)
    panel = Panel.load({judge: args.oracles / f"{args.panel}-{judge}.safetensors" for judge in PANEL})
    shards = read_shards(args.shards)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in ("rows", "maps", "suppression", "recovery", "gate")}
    with Progress("measure", total=len(shards), unit="shards") as progress:
        for shard in shards:
            split = pd.read_parquet(args.splits / f"{shard.world}.parquet")
            systems, pairs = (datasets.load(shard.world, split, name, args.data) for name in ("systems", "pairs"))
            classifier = load_checkpoint(args.systems / f"{shard.world}-{shard.classifier}.safetensors")
            fills = Fills.of(shard.world, systems, args.infillers)
            here = Explained(datasets.load_ids(shard.world, shard.ids, args.data), classifier, fills, shard.seed)
            for name, found in measured_shard(shard, here, settings).items():
                tables[name] += found
            tables["rows"].append(measure_shard(shard, panel, args.data).assign(starts=shard.starts))
            if shard.starts == "pairs":
                gate = oracle_gate(shard, judge_accuracy(panel, pairs), len(pairs.ids))
                tables["gate"].append(gate.assign(starts=shard.starts))
                for fill in settings.recover[shard.world]:
                    n, draws = (settings.few, FEW_DRAWS) if fill in settings.slow else (len(shard.ids), DRAWS)
                    for kind, values in recovery(here[slice(0, n)], fill, draws):
                        tables["recovery"].append(_table(shard, values, n, method=fill, kind=kind))
            progress.advance()
    for name, parts in tables.items():
        with atomic_path(args.out / f"{name}.parquet") as temporary:
            (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()).to_parquet(temporary, index=False)


if __name__ == "__main__":
    main()
