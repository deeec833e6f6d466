"""The packaged classifiers are proved by accuracy; a user's own one by its shape; wrong names by one clear line."""

import importlib
import os

import numpy as np
import pytest
import torch
from torch import nn

from common.classifiers.base import Classifier
from common.classifiers.pretrained import BUILDERS, load_classifier
from common.data import registry
from common.data.fetch import fetch
from common.data.images import load_image
from common.errors import VceError


def fetched(name: str):
    try:
        return fetch(name)
    except VceError as error:
        if os.environ.get("VCE_OFFLINE", "0") not in ("", "0"):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    fetched("efficientnet-lite0.pth")
    return load_classifier("imagenet/efficientnet-lite0")


def test_lite0_recognises_the_labelled_photos(lite0):
    photos = [name for name in registry.names() if name.startswith("imagenet_")]
    labels = torch.tensor([int(name.removesuffix(".jpg").split("_")[2]) for name in photos])
    images = torch.stack([load_image(fetched(name), lite0.image_shape) for name in photos])
    with torch.no_grad():
        probabilities = lite0(images).softmax(1)
    assert len(photos) == 20
    # 18 with TensorFlow's padding and ε; 14 without, 17 squashed: the gate sees each mistake.
    assert (probabilities.argmax(1) == labels).sum() == 18
    assert probabilities.gather(1, labels[:, None]).mean().item() == pytest.approx(0.692, abs=0.005)


def test_lite0_input_range_names_and_frozen_weights(lite0):
    assert lite0.name == "imagenet/efficientnet-lite0" and lite0.image_shape == (3, 224, 224)
    assert len(set(lite0.class_names)) == 1000
    assert [lite0.class_names[index] for index in (0, 281, 948)] == ["tench", "tabby", "Granny Smith"]
    seen = []
    hook = lite0.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 224, 224).requires_grad_()
    (gradient,) = torch.autograd.grad(lite0(image)[:, 281].sum(), image)
    hook.remove()
    assert torch.allclose(seen[0], (255 * image - 127) / 128, atol=1e-5)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    assert not lite0.training and not any(weight.requires_grad for weight in lite0.parameters())


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All 5000 digits N×1×28×28 in [0, 1] and their labels."""
    table = torch.from_numpy(np.loadtxt(fetched("mnist_5k.csv.gz"), delimiter=",", dtype=np.float32))
    return table[:, :-1].view(-1, 1, 28, 28) / 255, table[:, -1].long()


@pytest.mark.parametrize(("kind", "accuracy"), [("robust", 0.9912), ("plain", 0.9928)])
def test_packaged_lenets(kind, accuracy, digits):
    fetched("mnist_lenet5_advtrained.pt"), fetched("mnist_lenet5_clntrained.pt")
    classifier = load_classifier(f"mnist/lenet5-{kind}-packaged")
    assert classifier.name in BUILDERS and classifier.class_names == tuple("0123456789")
    images, labels = digits
    with torch.no_grad():
        right = (classifier(images).argmax(1) == labels).double().mean().item()
    assert right == pytest.approx(accuracy, abs=1e-3)


class Tiny(nn.Module):
    """A user's own module."""

    def __init__(self, classes: int = 3, shape: object = (3, 8, 8)):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))
        self.image_shape = shape

    def forward(self, images):
        return self.body(images)


@pytest.fixture
def own(monkeypatch, tmp_path):
    """Write a module of the current folder; returns the import path of its `build`."""

    def write(source: str) -> str:
        name = f"own_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        return f"{name}:build"

    return write


def building(own, monkeypatch, module) -> str:
    """The import path of a `build` that returns `module`."""
    path = own("def build():\n    return MODULE\n")
    imported = importlib.import_module(path.partition(":")[0])
    monkeypatch.setattr(imported, "MODULE", module, raising=False)
    return path


def test_own_module_is_wrapped(own, monkeypatch):
    module = Tiny()
    path = building(own, monkeypatch, module)
    classifier = load_classifier(path)
    assert isinstance(classifier, Classifier)
    assert (classifier.name, classifier.image_shape, classifier.class_names) == (path, (3, 8, 8), ("0", "1", "2"))
    assert not classifier.training and not any(weight.requires_grad for weight in classifier.parameters())
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(classifier(images), module(images))
    module.class_names = ["cat", "dog", "cow"]
    assert load_classifier(path).class_names == ("cat", "dog", "cow")


def test_own_classifier_is_taken_as_it_is(own, monkeypatch):
    mine = Classifier(Tiny(), ["a", "b", "c"], name="mine", image_shape=(3, 8, 8), temperature=2.0)
    assert load_classifier(building(own, monkeypatch, mine)) is mine


def with_names(names):
    module = Tiny()
    module.class_names = names
    return module


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Tiny(shape=None), "the image size is unknown; give the module an attribute image_shape"),
        (Tiny(shape=(2, 8, 8)), r"image_shape \(2, 8, 8\) is not \(1 or 3, height, width\)"),
        (Tiny(shape=(3, 9, 9)), "fails on images 2×3×9×9"),
        (Tiny(classes=1), r"2 images give \(2, 1\); return logits"),
        (with_names(["only", "two"]), "2 class_names for 3 logits"),
        ("no module", "returns str; return a torch.nn.Module"),
    ],
)
def test_own_module_that_does_not_fit(own, monkeypatch, module, message):
    with pytest.raises(VceError, match=message):
        load_classifier(building(own, monkeypatch, module))


def test_own_code_that_fails(own):
    with pytest.raises(VceError, match="ZeroDivisionError: division by zero; to see the traceback"):
        load_classifier(own("def build():\n    return 1 / 0\n"))
    with pytest.raises(VceError, match="ModuleNotFoundError: No module named 'nowhere_at_all'"):
        load_classifier("nowhere_at_all:build")


def test_unknown_names():
    with pytest.raises(VceError, match=r"did you mean imagenet/efficientnet-lite0\? Known are .*mnist/lenet5-robust"):
        load_classifier("efficientnet_lite0")
    with pytest.raises(VceError, match="'zzz': unknown; Known are"):
        load_classifier("zzz")
    with pytest.raises(VceError, match=r"gone\.safetensors: no such checkpoint"):
        load_classifier("work/gone.safetensors")
