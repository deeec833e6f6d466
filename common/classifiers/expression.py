"""The facial expression classifier of the package fer, ported from Keras: a mini-Xception on 64×64 luma (Arriaga et
al., 2017)."""

import numpy as np
import torch
from torch import Tensor, nn

from common.classifiers.base import Classifier
from common.data.fetch import fetch

EXPRESSIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
LUMA = (0.299, 0.587, 0.114)
WIDTHS = (8, 16, 32, 64, 128)  # of the stem, and of the blocks, each at half the resolution


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution."""

    def __init__(self, inner: int, outer: int):
        super().__init__(
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.Conv2d(inner, outer, 1, bias=False)
        )


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Two separable convolutions and a max-pool, beside a strided 1×1 convolution."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        from timm.layers import create_pool2d

        pool = create_pool2d("max", 3, 2, padding="same")
        layers = Separable(inner, outer), _norm(outer), nn.ReLU(), Separable(outer, outer), _norm(outer), pool
        self.body = nn.Sequential(*layers)
        self.side = nn.Sequential(nn.Conv2d(inner, outer, 1, 2, bias=False), _norm(outer))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.side(x)


class MiniXception(nn.Module):
    """N×3×64×64, normalised to [−1, 1], to N×7 logits; colours enter as luma."""

    def __init__(self):
        super().__init__()
        stem, *rest = WIDTHS
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)
        self.stem = nn.Sequential(
            nn.Conv2d(1, stem, 3, bias=False), _norm(stem), nn.ReLU(),
            nn.Conv2d(stem, stem, 3, bias=False), _norm(stem), nn.ReLU(),
        )  # fmt: skip
        self.blocks = nn.Sequential(*(Block(inner, outer) for inner, outer in zip(WIDTHS, rest, strict=False)))
        self.head = nn.Conv2d(WIDTHS[-1], len(EXPRESSIONS), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem((x * self.luma).sum(1, keepdim=True)))).mean((2, 3))


def expression() -> Classifier:
    """The packaged classifier: N×3×64×64 in [0, 1] to N×7 logits of `EXPRESSIONS`, in evaluation mode, frozen. Raises
    VceError when the weights cannot be fetched."""
    network = MiniXception()
    network.load_state_dict(_ported(network), strict=True)
    network.to(memory_format=torch.channels_last)  # less than half the time per pass on a CPU
    name, shape = "faces/expression", (3, 64, 64)
    classifier = Classifier(network, EXPRESSIONS, name=name, image_shape=shape, mean=[0.5] * 3, std=[0.5] * 3)
    return classifier.eval().requires_grad_(False)


def _ported(network: MiniXception) -> dict[str, Tensor]:
    """The tensors of the Keras file under the names of `network`."""
    import h5py

    layers = {"stem.0": "conv2d_1", "stem.1": "batch_normalization_1", "stem.3": "conv2d_2", "head": "conv2d_7"}
    layers["stem.4"] = "batch_normalization_2"
    for b in range(4):
        block = f"blocks.{b}"
        layers |= {
            f"{block}.body.0": f"separable_conv2d_{2 * b + 1}", f"{block}.body.1": f"batch_normalization_{3 * b + 4}",
            f"{block}.body.3": f"separable_conv2d_{2 * b + 2}", f"{block}.body.4": f"batch_normalization_{3 * b + 5}",
            f"{block}.side.0": f"conv2d_{b + 3}", f"{block}.side.1": f"batch_normalization_{3 * b + 3}",
        }  # fmt: skip
    state = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    with h5py.File(fetch("expression.hdf5"), "r") as file:
        for ours, theirs in layers.items():
            group = file["model_weights"][theirs]
            for path in group.attrs["weight_names"]:
                kind = path.decode().rsplit("/", 1)[1].removesuffix(":0")
                state[f"{ours}.{TENSORS[kind]}"] = _turned(kind, np.asarray(group[path]))
    return state


TENSORS = {
    "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var", "depthwise_kernel": "0.weight", "pointwise_kernel": "1.weight",
}  # fmt: skip


def _turned(kind: str, values: np.ndarray) -> Tensor:
    """Keras keeps kernels as height × width × in × out, depthwise ones as height × width × in × 1."""
    tensor = torch.from_numpy(values)
    if tensor.ndim < 4:
        return tensor
    return tensor.permute(2, 3, 0, 1) if kind == "depthwise_kernel" else tensor.permute(3, 2, 0, 1)
