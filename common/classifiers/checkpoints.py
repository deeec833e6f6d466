"""Classifiers as files: safetensors whose metadata say how to build them again. Nothing is unpickled."""

from pathlib import Path

from common.classifiers.architectures import ARCHITECTURES
from common.classifiers.base import Classifier
from common.classifiers.kernel_machine import KernelMachine
from common.errors import VceError
from common.tensors import not_a, read_tensors, write_tensors

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
    write_tensors(path, "classifier", classifier.state_dict(), header)


def load_checkpoint(path: Path | str) -> Classifier:
    """The classifier in a file of `save_checkpoint`, in eval mode, its parameters frozen.

    Raises VceError when the file is damaged or is not one of ours.
    """
    header, state = read_tensors(path, "classifier")
    try:
        shape, names = tuple(header["image_shape"]), tuple(header["class_names"])
        classifier = build(header["architecture"], name=header["name"], image_shape=shape, class_names=names)
        if header["architecture"] == "kernel_machine":
            classifier.network.resize_like(state)
        classifier.mean, classifier.std = state["mean"].clone(), state["std"].clone()
        classifier.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        raise not_a("classifier", path, "its tensors are not those of its architecture") from error
    return classifier.eval().requires_grad_(False)


def checkpoint_facts(path: Path | str) -> dict:
    """The facts that `save_checkpoint` was given."""
    return read_tensors(path, "classifier")[0]["facts"]
