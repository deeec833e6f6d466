"""Explained batches on disk: one safetensors file per shard, one entry per method, samples shared by all.

A shard is one world, one classifier and one training seed. The file holds only what is deterministic; what it cost
stands beside it in `<shard>.cost.json`.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from common.errors import VceError
from common.explain import STATUSES, CounterfactualBatch
from common.files import write_atomic


@dataclass(frozen=True)
class Shard:
    """Counterfactuals by method for the same N samples.

    `starts` names the rule by which images and targets were chosen. `accuracy` is the classifier's on all images of the
    pairs split;
    `source_prediction` N is what the classifier sees in x, `interventions` what it sees under do(factor), by factor;
    `traces` holds N×S×(steps + 1) running objectives of the methods that were asked for them.
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
    """Write a shard atomically."""
    tensors = {name: getattr(shard, name).contiguous() for name in ("source", "target", "source_prediction")}
    for method, batch in shard.batches.items():
        for item in fields(batch):
            value = getattr(batch, item.name)
            if isinstance(value, Tensor):
                tensors[f"{method}|{item.name}"] = value.clone()
        codes = np.vectorize(STATUSES.index)(batch.status)
        tensors[f"{method}|status"] = torch.from_numpy(codes)
    tensors |= {f"do|{factor}": prediction for factor, prediction in shard.interventions.items()}
    tensors |= {f"{method}|trace": trace.contiguous() for method, trace in shard.traces.items()}
    header = {
        "world": shard.world,
        "starts": shard.starts,
        "classifier": shard.classifier,
        "seed": shard.seed,
        "ids": shard.ids,
        "accuracy": shard.accuracy,
        "strengths": {method: batch.strengths for method, batch in shard.batches.items()},
    }
    write_atomic(path, save(tensors, metadata={"shard": json.dumps(header, sort_keys=True)}))


def read_shard(path: Path) -> Shard:
    """Read a shard. Raises VceError when the file is damaged."""
    try:
        with safe_open(path, framework="pt") as handle:
            header = json.loads(handle.metadata()["shard"])
            absent = {"world", "starts", "classifier", "seed", "ids", "accuracy", "strengths"} - set(header)
            if absent:
                raise KeyError(f"no {', '.join(sorted(absent))}")
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise VceError(
            f"{path}: not a shard of explained batches ({error}); delete it and run the same command again"
        ) from error
    batches = {}
    for method, strengths in header["strengths"].items():
        values = {item.name: tensors.get(f"{method}|{item.name}") for item in fields(CounterfactualBatch)}
        values["status"] = np.array(STATUSES)[values["status"].numpy()]
        batches[method] = CounterfactualBatch(**{**values, "strengths": tuple(strengths)})
    return Shard(
        world=header["world"],
        starts=header["starts"],
        classifier=header["classifier"],
        seed=header["seed"],
        ids=tuple(header["ids"]),
        accuracy=header["accuracy"],
        source=tensors["source"],
        target=tensors["target"],
        source_prediction=tensors["source_prediction"],
        interventions={key.split("|")[1]: value for key, value in tensors.items() if key.startswith("do|")},
        batches=batches,
        traces={key.split("|")[0]: value for key, value in tensors.items() if key.endswith("|trace")},
    )
