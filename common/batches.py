"""Explained batches on disk: a safetensors file of one shard or more, one entry per method, samples shared by all.

A shard is one world, one classifier and one training seed. The file holds only what is deterministic; what it cost
stands beside it in `<shard>.cost.json`.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import VceError
from common.explain import CounterfactualBatch
from common.results import STATUSES
from common.tensors import not_a, read_tensors, write_tensors

HEADER = ("world", "starts", "classifier", "seed", "ids", "accuracy")  # the fields of a shard that are no tensors


@dataclass(frozen=True)
class Shard:
    """Counterfactuals by method for the same N samples.

    `starts` names the rule by which images and targets were chosen. `accuracy` is the classifier's on all images of the
    pairs split;
    `source_prediction` N is what the classifier sees in x, `interventions` what it sees under do(factor), by factor;
    `traces` holds N×S×… what a method recorded on its way: running objectives, path lengths.
    """

    world: str
    starts: str
    classifier: str
    seed: int
    ids: tuple[str, ...]
    source: Tensor
    target: Tensor
    accuracy: float
    source_prediction: Tensor
    interventions: dict[str, Tensor]
    batches: dict[str, CounterfactualBatch]
    traces: dict[str, Tensor]


def write_shard(shard: Shard, path: Path) -> None:
    """Write one shard atomically."""
    write_shards([shard], path)


def write_shards(shards: list[Shard], path: Path) -> None:
    """Write several shards as one file, atomically."""
    tensors, headers = {}, []
    for number, shard in enumerate(shards):
        mine = {name: getattr(shard, name) for name in ("source", "target", "source_prediction")}
        for method, batch in shard.batches.items():
            for item in fields(batch):
                value = getattr(batch, item.name)
                if isinstance(value, Tensor):
                    mine[f"{method}|{item.name}"] = value
            codes = np.vectorize(STATUSES.index)(batch.status)
            mine[f"{method}|status"] = torch.from_numpy(codes)
        mine |= {f"do|{factor}": prediction for factor, prediction in shard.interventions.items()}
        mine |= {f"{method}|trace": trace for method, trace in shard.traces.items()}
        tensors |= {f"{number}|{key}": value for key, value in mine.items()}
        strengths = {method: batch.strengths for method, batch in shard.batches.items()}
        headers.append({name: getattr(shard, name) for name in HEADER} | {"strengths": strengths})
    write_tensors(path, "shard", tensors, {"shards": headers})


def read_shard(path: Path) -> Shard:
    """The only shard in a file. Raises VceError when it is damaged or holds several."""
    shards = read_shards(path)
    if len(shards) != 1:
        raise VceError(f"{path}: holds {len(shards)} shards where one is expected; read it with read_shards")
    return shards[0]


def read_shards(path: Path) -> list[Shard]:
    """All shards in a file. Raises VceError when it is damaged."""
    header, tensors = read_tensors(path, "shard")
    shards: list[dict] = [{} for _ in header.get("shards", ())]
    try:
        for key, value in tensors.items():
            number, _, name = key.partition("|")
            shards[int(number)][name] = value
        return [_shard(facts, found) for facts, found in zip(header["shards"], shards, strict=True)]
    except (KeyError, IndexError, ValueError) as error:
        raise not_a("shard", path, f"it lacks {error}") from error


def _shard(header: dict, tensors: dict[str, Tensor]) -> Shard:
    batches = {}
    for method, strengths in header["strengths"].items():
        values = {item.name: tensors.get(f"{method}|{item.name}") for item in fields(CounterfactualBatch)}
        values["status"] = np.array(STATUSES)[tensors[f"{method}|status"].numpy()]
        batches[method] = CounterfactualBatch(**{**values, "strengths": tuple(strengths)})
    return Shard(
        **{name: header[name] for name in HEADER if name != "ids"},
        ids=tuple(header["ids"]),
        source=tensors["source"],
        target=tensors["target"],
        source_prediction=tensors["source_prediction"],
        interventions={key.split("|")[1]: value for key, value in tensors.items() if key.startswith("do|")},
        batches=batches,
        traces={key.split("|")[0]: value for key, value in tensors.items() if key.endswith("|trace")},
    )
