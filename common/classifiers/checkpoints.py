"""Classifiers as files: safetensors whose metadata say how to build them again. Nothing is unpickled."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from common.classifiers.architectures import ARCHITECTURES
from common.classifiers.base import Classifier
from common.classifiers.kernel_machine import KernelMachine
from common.errors import VceError
from common.files import write_atomic

BUILDERS = {**ARCHITECTURES, "kernel_machine": KernelMachine.empty}


def build(
    architecture: str, *, name: str, image_shape: tuple[int, int, int], class_names: tuple[str, ...]
) -> Classifier:
    """An untrained classifier. Raises VceError for an unknown architecture."""
    if architecture not in BUILDERS:
        raise VceError(f"architecture {architecture!r} is unknown; choose one of {', '.join(BUILDERS)}")
    network = BUILDERS[architecture](image_shape[0], len(class_names))
    return Classifier(network, class_names, name=name, image_shape=image_shape)


def save_checkpoint(classifier: Classifier, path: Path, *, architecture: str, facts: dict) -> None:
    """Write a classifier atomically; `facts` (recipe, accuracies) are kept as JSON metadata."""
    header = {
        "architecture": architecture,
        "name": classifier.name,
        "image_shape": classifier.image_shape,
        "class_names": classifier.class_names,
        "facts": facts,
    }
    state = {key: value.contiguous() for key, value in classifier.state_dict().items()}
    write_atomic(path, save(state, metadata={"classifier": json.dumps(header, sort_keys=True)}))


def load_checkpoint(path: Path | str) -> Classifier:
    """The classifier in a file of `save_checkpoint`, in eval mode, its parameters frozen.

    Raises VceError when the file is damaged or is not one of ours.
    """
    header, state = _read(path)
    try:
        shape, names = tuple(header["image_shape"]), tuple(header["class_names"])
        classifier = build(header["architecture"], name=header["name"], image_shape=shape, class_names=names)
        if header["architecture"] == "kernel_machine":
            classifier.network.resize_like(state)
        classifier.mean, classifier.std = state["mean"].clone(), state["std"].clone()
        classifier.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        raise VceError(
            f"{path}: not a classifier checkpoint (its tensors are not those of its architecture); "
            "delete it and run the same command again"
        ) from error
    return classifier.eval().requires_grad_(False)


def checkpoint_facts(path: Path | str) -> dict:
    """The facts that `save_checkpoint` was given."""
    return _read(path)[0]["facts"]


def _read(path: Path | str) -> tuple[dict, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as handle:
            header = json.loads((handle.metadata() or {})["classifier"])
            return header, {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise VceError(
            f"{path}: not a classifier checkpoint ({error}); delete it and run the same command again"
        ) from error
