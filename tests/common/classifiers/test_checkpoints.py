"""Classifiers as files: bit-identical logits there and back, and one line for anything else."""

import json

import pytest
import torch
from safetensors.torch import save_file

from common.classifiers.architectures import ARCHITECTURES
from common.classifiers.checkpoints import build, checkpoint_facts, load_checkpoint, save_checkpoint
from common.classifiers.kernel_machine import KernelMachine
from common.errors import VceError

NAMES = ("a", "b", "c")


def images(shape, n=12):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def trained(architecture, shape):
    """A classifier whose every number differs from its initial one."""
    torch.manual_seed(1)
    classifier = build(architecture, name="n", image_shape=shape, class_names=NAMES)
    if architecture == "kernel_machine":
        classifier.network = KernelMachine.fit(images(shape, 30), torch.arange(30) % 3, 3)
    classifier.mean.data, classifier.std.data = (torch.rand(1, shape[0], 1, 1) + 0.1 for _ in range(2))
    classifier.temperature.fill_(0.37)
    classifier.train()(images(shape))  # moves the batch statistics
    return classifier.eval()


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "kernel_machine"])
def test_round_trip_gives_the_same_bits(tmp_path, architecture, shape):
    classifier, x = trained(architecture, shape), images(shape)
    path = tmp_path / "c.safetensors"
    save_checkpoint(classifier, path, architecture=architecture, facts={"accuracy": 0.9})
    back = load_checkpoint(path)
    with torch.no_grad():
        assert torch.equal(back(x), classifier(x))
    assert back(x).shape == (12, 3) and not back.training
    assert not any(parameter.requires_grad for parameter in back.parameters())
    assert (back.name, back.image_shape, back.class_names) == ("n", shape, NAMES)
    assert back.temperature.item() == pytest.approx(0.37)
    assert checkpoint_facts(path) == {"accuracy": 0.9}
    again = tmp_path / "again.safetensors"
    save_checkpoint(back, again, architecture=architecture, facts={"accuracy": 0.9})
    assert again.read_bytes() == path.read_bytes()


def test_normalisation_and_temperature_are_part_of_the_classifier():
    classifier, x = trained("strided_cnn", (3, 32, 32)), images((3, 32, 32))
    by_hand = classifier.network((x - classifier.mean) / classifier.std) / 0.37
    assert torch.allclose(classifier(x), by_hand)


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped header", "html", "empty", "missing", "foreign", "no names", "no header"]
)
def test_damaged_files_are_one_line(tmp_path, damage):
    path = tmp_path / "c.safetensors"
    save_checkpoint(trained("strided_cnn", (1, 28, 28)), path, architecture="strided_cnn", facts={})
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    elif damage == "no names":
        save_file({"weight": torch.zeros(2)}, path, metadata={"classifier": "not json"})
    elif damage == "no header":
        save_file({"weight": torch.zeros(2)}, path, metadata={"classifier": "null"})
    else:
        path.write_bytes(
            {
                "truncated": whole[: len(whole) // 2],
                "flipped header": whole[:20] + b"\xff" + whole[21:],
                "html": b"<!DOCTYPE html><html><body>404</body></html>",
                "empty": b"",
            }[damage]
        )
    with pytest.raises(VceError) as caught:
        load_checkpoint(path)
    said = str(caught.value)
    fix = "give the file of a classifier" if damage == "foreign" else "delete it"
    assert said.startswith(f"{path}: not a classifier file (") and fix in said and "\n" not in said


def test_tensors_of_another_network_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    header = {"architecture": "plain_cnn", "name": "n", "image_shape": (1, 28, 28), "class_names": NAMES, "facts": {}}
    save_file({"mean": torch.zeros(1, 1, 1, 1), "std": torch.ones(1, 1, 1, 1)}, path,
              metadata={"classifier": json.dumps(header)})  # fmt: skip
    with pytest.raises(VceError, match=r"not a classifier file \(its tensors are not those of its architecture\)"):
        load_checkpoint(path)


def test_unknown_architectures_are_refused():
    with pytest.raises(VceError, match=r"architecture 'resnet' is unknown; choose one of strided_cnn"):
        build("resnet", name="n", image_shape=(3, 8, 8), class_names=NAMES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_do_not_see_each_other(architecture):
    classifier, x = trained(architecture, (3, 32, 32)), images((3, 32, 32))
    other = x.clone()
    other[3] = torch.nan
    with torch.no_grad():
        a, b = classifier(x), classifier(other)
    rest = torch.arange(12) != 3
    assert torch.equal(a[rest], b[rest]) and b[3].isnan().all()
