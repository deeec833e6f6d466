"""Tensors on disk: safetensors with a JSON header that says what they are. Nothing is unpickled."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from common.errors import VceError
from common.files import write_atomic


def write_tensors(path: Path, kind: str, tensors: dict[str, Tensor], header: dict) -> None:
    """Write named tensors atomically; `header`, a JSON object, is kept under the name of their `kind`."""
    # safetensors refuses one tensor under two names, and views
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    write_atomic(path, save(copies, metadata={kind: json.dumps(header, sort_keys=True)}))


def read_tensors(path: Path | str, kind: str) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a file of `write_tensors`. Raises VceError when it is damaged or of another kind."""
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            if kind not in metadata:
                holds = ", ".join(metadata) or "no header of ours"
                raise VceError(f"{path}: not a {kind} file (it holds {holds}); give the file of a {kind}")
            header = json.loads(metadata[kind])
            if not isinstance(header, dict):
                raise ValueError("its header is no JSON object")
            return header, {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise not_a(kind, path, error) from error


def not_a(kind: str, path: Path | str, reason: object) -> VceError:
    """The error of a file that is no `kind`: one line with the reason and the fix."""
    return VceError(f"{path}: not a {kind} file ({reason}); delete it and run snakemake, which builds it again")
