"""Tensors on disk: the same bits there and back, and one line for anything else."""

import pytest
import torch
from safetensors.torch import save_file

from common.errors import VceError
from common.tensors import not_a, read_tensors, write_tensors

HEADER = {"name": "é ∂", "shape": [3, 4], "nested": {"b": None, "a": 0.1}}


def tensors():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, generator=generator)
    return {
        "x": x,
        "transposed": torch.randn(4, 3, generator=generator).T,
        "expanded": torch.randn(3, 1, generator=generator).expand(3, 5),
        "strange": torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0]),
        "scalar": torch.tensor(0.37),
        "empty": torch.zeros(0, 2),
        "a|b.c": torch.arange(6, dtype=torch.long),
        "mask": torch.tensor([True, False]),
        "double": x.double() / 3,
        "x again": x,
        "part of x": x[1:, ::2],
    }


def test_round_trip_gives_the_same_bits(tmp_path):
    path = tmp_path / "deep" / "t.safetensors"
    write_tensors(path, "thing", tensors(), HEADER)
    header, back = read_tensors(path, "thing")
    assert header == HEADER and back.keys() == tensors().keys()
    for key, value in tensors().items():
        assert back[key].dtype == value.dtype and back[key].shape == value.shape
        assert back[key].numpy().tobytes() == value.contiguous().numpy().tobytes(), key
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    assert read_tensors(str(path), "thing")[0] == HEADER


def test_same_tensors_same_bytes_whatever_the_order(tmp_path):
    write_tensors(tmp_path / "a", "thing", tensors(), HEADER)
    write_tensors(tmp_path / "b", "thing", dict(reversed(tensors().items())), dict(reversed(HEADER.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_second_write_replaces_the_first(tmp_path):
    write_tensors(tmp_path / "t", "thing", tensors(), HEADER)
    write_tensors(tmp_path / "t", "thing", {"y": torch.ones(2)}, {})
    assert read_tensors(tmp_path / "t", "thing")[0] == {}
    assert list(read_tensors(tmp_path / "t", "thing")[1]) == ["y"]


def test_what_was_read_is_its_own(tmp_path):
    path = tmp_path / "t"
    write_tensors(path, "thing", tensors(), HEADER)
    whole, (_, back) = path.read_bytes(), read_tensors(path, "thing")
    back["mask"].zero_()
    assert path.read_bytes() == whole
    write_tensors(path, "thing", {"y": torch.zeros(100)}, HEADER)
    assert torch.equal(back["x"], tensors()["x"])


DAMAGE = {
    "empty": lambda whole: b"",
    "html": lambda whole: b"<!DOCTYPE html>\n<html>\n<body>404</body></html>",
    "half": lambda whole: whole[: len(whole) // 2],
    "one byte short": lambda whole: whole[:-1],
    "one byte long": lambda whole: whole + b"\0",
    "inside of its header": lambda whole: whole[:20],
    "huge header": lambda whole: b"\xff" * 8 + whole[8:],
    "flipped header": lambda whole: whole[:20] + b"\xff" + whole[21:],
    "header over lines": lambda whole: whole[:20] + b"\n" + whole[21:],
}


def refused(path, kind, reason=".+", fix="delete it"):
    with pytest.raises(VceError, match=rf"not a {kind} file \({reason}\); {fix}") as caught:
        read_tensors(path, kind)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, damage):
    path = tmp_path / "t.safetensors"
    write_tensors(path, "thing", tensors(), HEADER)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    refused(path, "thing")


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, "thing", {"x": torch.arange(3.0)}, {"a": 1})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path, "thing")


def test_absent_files_and_folders_are_one_line(tmp_path):
    refused(tmp_path / "gone.safetensors", "thing", ".*No such file.*")
    refused(tmp_path, "thing")


def test_a_file_of_another_kind_says_what_it_is(tmp_path):
    fix = "give the file of a VAE"
    write_tensors(tmp_path / "t", "shard", tensors(), HEADER)
    refused(tmp_path / "t", "VAE", "it holds shard", fix)
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    refused(tmp_path / "foreign", "VAE", "it holds no header of ours", fix)
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign", metadata={"format": "pt"})
    refused(tmp_path / "foreign", "VAE", "it holds format", fix)


@pytest.mark.parametrize("header", ["", "not json", '{"a": 1', "null", "[1, 2]", '"text"'])
def test_a_header_that_is_no_json_object_is_refused(tmp_path, header):
    save_file({"x": torch.zeros(1)}, tmp_path / "t", metadata={"thing": header})
    refused(tmp_path / "t", "thing")


def test_a_header_that_cannot_be_written_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_tensors(tmp_path / "t", "thing", tensors(), {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_the_error_names_reason_and_fix():
    error = not_a("VAE", "work/v.safetensors", "too old")
    assert str(error) == (
        "work/v.safetensors: not a VAE file (too old); delete it and run snakemake, which builds it again"
    )
