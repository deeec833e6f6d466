"""What measuring needs to know of a world besides its shards: who judges, and what real images look like."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.batches import Shard
from common.classifiers.checkpoints import load_checkpoint
from common.classifiers.oracles import Panel
from common.data import datasets
from common.metrics.realism import Features, Halves, Reference
from common.results import PANEL

NEIGHBOURS = 5


@dataclass(frozen=True, eq=False)
class World:
    """The oracle panel of a world, the features of a net that judges nothing, its real images: `pairs`, of which some
    are explained, and `systems`, which the explained systems were trained on."""

    name: str
    panel: Panel
    features: Features
    pairs: datasets.Images
    systems: datasets.Images
    data: Path

    @classmethod
    def load(cls, name: str, table: pd.DataFrame, oracles: Path, data: Path, **more) -> "World":
        """From its split table, the folder of the judges and that of data files; `more` are fields of a subclass."""
        panel = Panel.load({judge: oracles / f"{name}-{judge}.safetensors" for judge in PANEL})
        pairs, systems, held = (datasets.load(name, table, split, data) for split in ("pairs", "systems", "oracles"))
        features = Features(load_checkpoint(oracles / f"{name}-features.safetensors"), held.images)
        return cls(name, panel, features, pairs, systems, data, **more)

    @functools.cached_property
    def real(self) -> Tensor:
        """Features of `pairs`."""
        return self.features(self.pairs.images)

    @functools.cached_property
    def train(self) -> Tensor:
        """Features of `systems`."""
        return self.features(self.systems.images)

    @functools.cached_property
    def _references(self) -> dict[tuple[str, ...], Reference]:
        return {}

    def neighbour_distance(self, features: Tensor, target: Tensor) -> Tensor:
        """Mean distance of N×D features to the 5 nearest training images of their target classes: N."""
        distance = torch.cdist(features, self.train)
        distance = distance.masked_fill(self.systems.labels[None] != target[:, None], torch.inf)
        return distance.topk(NEIGHBOURS, dim=1, largest=False).values.mean(1)

    def kid(self, shard: Shard, sets: dict[tuple[str, float], Tensor]) -> pd.DataFrame:
        """KID of every set of counterfactuals in a shard, given their features by method and strength, against real
        images of the pairs split that it does not explain: `half` 0 is that of everything, the rest are
        half-samples."""
        n = len(shard.ids)
        if shard.ids not in self._references:
            explained = set(shard.ids)
            real = self.real[[image not in explained for image in self.pairs.ids]]
            self._references[shard.ids] = Reference(real, Halves.draw(n, len(real)))
        facts, lines = {"world": shard.world, "starts": shard.starts, "seed": shard.seed, "n": n}, []
        for (method, strength), features in sets.items():
            kid = self._references[shard.ids].kid(features).numpy()
            lines.append({**facts, "method": method, "strength": strength, "half": np.arange(len(kid)), "kid": kid})
        return pd.concat([pd.DataFrame(line) for line in lines], ignore_index=True)
