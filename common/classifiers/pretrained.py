"""Classifiers by name: models that ship inside Python packages, the user's own, and trained checkpoints."""

import difflib
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from common.classifiers.architectures import LeNet5
from common.classifiers.base import Classifier
from common.data.fetch import fetch
from common.errors import VceError

LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage


def efficientnet_lite0() -> Classifier:
    """EfficientNet-Lite0 on ImageNet-1k: N×3×224×224 in [0, 1] to N×1000 logits.

    The weights are a port of the TensorFlow release, input (255x − 127)/128, so the architecture needs TensorFlow's
    'same' padding and batch-norm ε (timm's `tf_` variant). It gets 18 of the 20 labelled photos right through
    `load_image`. Raises VceError when the weights cannot be fetched.
    """
    import timm
    from torchvision.models import EfficientNet_B0_Weights

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(fetch("efficientnet-lite0.pth"), weights_only=True, map_location="cpu")
    network.load_state_dict({_lite0_key(key): value for key, value in weights.items()}, strict=True)
    network.to(memory_format=torch.channels_last)  # a sixth less time per pass on a CPU
    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    name, shape = "imagenet/efficientnet-lite0", (3, 224, 224)
    return _frozen(Classifier(network, names, name=name, image_shape=shape, mean=[127 / 255] * 3, std=[128 / 255] * 3))


def mnist_lenet5(kind: Literal["robust", "plain"]) -> Classifier:
    """The LeNet-5 shipped with advertorch 0.2.3: N×1×28×28 in [0, 1], white digit on black, to N×10 logits.

    `robust` was adversarially trained but is gradient-masked (99.1 % clean): a control row, not a robust reference.
    `plain` is its counterpart (99.3 % clean). Raises VceError when the weights cannot be fetched.
    """
    file = {"robust": "mnist_lenet5_advtrained.pt", "plain": "mnist_lenet5_clntrained.pt"}[kind]
    network = LeNet5(1, 10)
    network.load_state_dict(torch.load(fetch(file), weights_only=True, map_location="cpu"), strict=True)
    names = [str(digit) for digit in range(10)]
    return _frozen(Classifier(network, names, name=f"mnist/lenet5-{kind}-packaged", image_shape=(1, 28, 28)))


BUILDERS: dict[str, Callable[[], Classifier]] = {
    "imagenet/efficientnet-lite0": efficientnet_lite0,
    "mnist/lenet5-robust-packaged": partial(mnist_lenet5, "robust"),
    "mnist/lenet5-plain-packaged": partial(mnist_lenet5, "plain"),
}


def load_classifier(name: str) -> Classifier:
    """The classifier called `name`, in evaluation mode, its weights frozen.

    `name` is a key of `BUILDERS`, a checkpoint file `….safetensors`, or an import path `package.module:build`. There,
    `build` takes no arguments and returns a `Classifier`, or any module that maps N×C×H×W in [0, 1] to N×K logits and
    has the attribute `image_shape` = (C, H, W), and `class_names` if it knows them. The current folder is searched too.
    Raises VceError for a name that means nothing, with the known names and the closest match.
    """
    if name in BUILDERS:
        return BUILDERS[name]()
    if name.endswith(".safetensors"):
        if not Path(name).is_file():
            raise VceError(f"{name}: no such checkpoint; train it first, or check the path")
        from common.classifiers.checkpoints import load_checkpoint

        return load_checkpoint(name)
    if ":" in name:
        return _wrapped(_built(name), name)
    close = difflib.get_close_matches(name, BUILDERS, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise VceError(
        f"classifier {name!r}: unknown; {hint}Known are {', '.join(BUILDERS)}, "
        "a checkpoint FILE.safetensors, or an import path package.module:build"
    )


def _lite0_key(key: str) -> str:
    """The name that timm's EfficientNet gives to a tensor of the checkpoint, which numbers all blocks in one row."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first, _, rest = key.partition(".")
    if first in top:
        return f"{top[first]}.{rest}"
    number, layer, rest = rest.split(".", 2)
    stage, block = [(stage, block) for stage, count in enumerate(LITE0_BLOCKS) for block in range(count)][int(number)]
    # The first block expands nothing: it has two convolutions where the others have three.
    layers = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    names = ("conv_dw", "bn1", "conv_pw", "bn2")
    if stage > 0:
        layers, names = ("_expand_conv", "_bn0", *layers), ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    return f"blocks.{stage}.{block}.{names[layers.index(layer)]}.{rest}"


def _built(name: str) -> nn.Module:
    """Import `package.module:build` and call it; whatever goes wrong there is one line with the cause."""
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # the console script starts without it
    try:
        build = getattr(importlib.import_module(module_name), attribute)
        module = build if isinstance(build, nn.Module) else build()
    except VceError:
        raise
    except Exception as error:  # the user's own code may raise anything
        fix = f'to see the traceback: python -c "from {module_name} import {attribute}; {attribute}()"'
        raise VceError(f"classifier {name!r}: {type(error).__name__}: {error}; {fix}") from error
    if not isinstance(module, nn.Module):
        raise VceError(f"classifier {name!r}: returns {type(module).__name__}; return a torch.nn.Module")
    return module


def _wrapped(module: nn.Module, name: str) -> Classifier:
    """`module` as a `Classifier`, after one grey image has shown that shapes, values and class names agree."""
    shape = getattr(module, "image_shape", None)
    try:
        channels, height, width = (int(side) for side in shape)
    except (TypeError, ValueError) as error:
        fix = "give the module an attribute image_shape = (channels, height, width)"
        raise VceError(f"classifier {name!r}: the image size is unknown; {fix}") from error
    if channels not in (1, 3) or min(height, width) < 1:
        raise VceError(f"classifier {name!r}: image_shape {tuple(shape)} is not (1 or 3, height, width)")
    _frozen(module)
    try:
        with torch.no_grad():
            logits = module(torch.full((2, channels, height, width), 0.5))
    except Exception as error:  # the user's own code may raise anything
        raise VceError(f"classifier {name!r}: fails on images 2×{channels}×{height}×{width}: {error}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise VceError(f"classifier {name!r}: 2 images give {got}; return logits of shape (2, classes)")
    if not logits.isfinite().all():
        raise VceError(f"classifier {name!r}: a grey image gives logits that are not finite; check its weights")
    classes = getattr(module, "class_names", None) or [str(index) for index in range(logits.shape[1])]
    if len(classes) != logits.shape[1]:
        raise VceError(f"classifier {name!r}: {len(classes)} class_names for {logits.shape[1]} logits")
    if isinstance(module, Classifier):
        return module
    return _frozen(Classifier(module, classes, name=name, image_shape=(channels, height, width)))


def _frozen(module: nn.Module) -> nn.Module:
    """Evaluation mode without weight gradients, in place."""
    return module.eval().requires_grad_(False)
