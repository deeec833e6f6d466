"""Small classifiers that tests explain, and pictures for them."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.classifiers.ensembles import Ensemble
from common.generators.vae import VAE
from papers.clarity.systems import Systems, save_systems

NET = """
import torch
from torch import nn

class Net(nn.Module):
    '''Names the strongest of three colours.'''
    image_shape = (3, 24, 24)
    class_names = ("red rose", "green pea", "green leaf")

    def __init__(self):
        super().__init__()
        self.blur = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        with torch.no_grad():
            self.blur.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 3, 3) / 9)

    def forward(self, images):
        return 60 * self.blur(images).relu().mean((2, 3))

def grey():
    '''Class 1 when brighter than one half, else class 0.'''
    net = Net()
    net.image_shape = (1, 24, 24)
    net.blur = nn.Conv2d(1, 3, 3)
    with torch.no_grad():
        net.blur.weight.copy_(torch.tensor([0, 1, 0]).view(3, 1, 1, 1).expand(3, 1, 3, 3) / 9)
        net.blur.bias.copy_(torch.tensor([0.5, 0, 0]))
    return net
"""
RED, BLUE = (140, 128, 110), (100, 110, 140)


def work_in(folder: Path, monkeypatch) -> Path:
    """Make `folder` the working folder and put the net there, as `colournet`; each test imports it anew."""
    (folder / "colournet.py").write_text(NET)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("colournet", None)
    return folder


def paint(path: Path, colour=RED, size=(30, 40), **options) -> Path:
    noise = np.random.default_rng(0).normal(0, 6, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path, **options)
    return path


def digit_systems(path: Path) -> Path:
    """A systems file of digits: a VAE that nobody trained, and members with p(1) = σ(8 z_0), p(0) = 1 − p(1)."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        vae = VAE("mlp", (1, 28, 28), 3, (16,)).eval().requires_grad_(False)
    ensemble = Ensemble.create("mlp", (3,), 10, 2, 0)
    for value in ensemble.state.values():
        value.zero_()
    first, middle, last = (ensemble.state[f"{layer}.weight"] for layer in (1, 3, 5))
    first[:, 0, 0], first[:, 1, 0] = 1, -1  # relu(z_0) and relu(-z_0)
    middle[:, 0, 0] = middle[:, 1, 1] = 1
    last[:, 1, 0] = last[:, 0, 1] = 8
    ensemble.state["5.bias"][:, 2:] = -40
    names = {"l-sample.0": 1.0, "l-sample-m2": 1.0}
    save_systems(Systems("mnist", 0, vae, {"l-sample": ensemble}, names, torch.zeros(10, 3)), path, {})
    return path
