"""The port of the packaged expression classifier, against a NumPy walk of the Keras graph in its own file."""

import json

import h5py
import numpy as np
import pytest
import scipy.signal
import torch

from common.classifiers.expression import EXPRESSIONS, LUMA, expression
from common.data.fetch import fetch


def convolved(x, kernel, stride=1, padding="same"):
    """x H×W×in, kernel h×w×in×out."""
    found = [
        sum(scipy.signal.correlate2d(x[..., i], kernel[..., i, o], padding) for i in range(x.shape[2]))
        for o in range(kernel.shape[3])
    ]
    return np.stack(found, 2)[::stride, ::stride]


def pooled(x, size, stride):
    """Maximum over windows, padded as TensorFlow pads: what is missing, the larger half at the end."""
    height, width, _ = x.shape
    total = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in (height, width)]
    before = [missing // 2 for missing in total]
    rows = [(b, missing - b) for b, missing in zip(before, total, strict=True)]
    x = np.pad(x, [*rows, (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::stride, ::stride]
    return windows.max((3, 4))


def walk(file, image):
    """Logits of a 64×64×1 image in [−1, 1] by the layers and the weights of the file."""
    found = {}
    for layer in json.loads(file.attrs["model_config"])["config"]["layers"]:
        name, kind, config = layer["name"], layer["class_name"], layer["config"]
        group = file["model_weights"][name]
        weights = [np.asarray(group[path], dtype=np.float64) for path in group.attrs["weight_names"]]
        inputs = [found[node[0]] for node in layer["inbound_nodes"][0]] if layer["inbound_nodes"] else [image]
        x = inputs[0]
        if kind == "Conv2D":
            x = convolved(x, weights[0], config["strides"][0], config["padding"])
            x = x + weights[1] if config["use_bias"] else x
        elif kind == "SeparableConv2D":
            depth = [convolved(x[..., i : i + 1], weights[0][:, :, i : i + 1]) for i in range(x.shape[2])]
            x = np.concatenate(depth, 2) @ weights[1][0, 0]
        elif kind == "BatchNormalization":
            gamma, beta, mean, variance = weights
            x = (x - mean) / np.sqrt(variance + config["epsilon"]) * gamma + beta
        elif kind == "Activation" and config["activation"] == "relu":
            x = np.maximum(x, 0)
        elif kind == "MaxPooling2D":
            x = pooled(x, config["pool_size"][0], config["strides"][0])
        elif kind == "Add":
            x = sum(inputs)
        elif kind == "GlobalAveragePooling2D":
            x = x.mean((0, 1))
        found[name] = x
    return found["predictions"]  # its soft-max left out


def test_the_port_computes_what_the_keras_file_says():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    f = expression()
    found = f(images).numpy()
    luma = 2 * np.einsum("nchw,c->nhw", images.numpy().astype(np.float64), LUMA) - 1
    with h5py.File(fetch("expression.hdf5"), "r") as file:
        expected = np.stack([walk(file, image[..., None]) for image in luma])
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert f.class_names == EXPRESSIONS and f.image_shape == (3, 64, 64) and not f.training


def test_colour_enters_as_luma_alone():
    f, grey = expression(), torch.full((1, 3, 64, 64), 0.4)
    tinted = grey + torch.tensor([0.1, -0.1 * LUMA[0] / LUMA[1], 0.0]).view(1, 3, 1, 1)
    assert f(tinted).numpy() == pytest.approx(f(grey).numpy(), abs=1e-4)
