"""Folders that are built whole and replaced whole, and never a folder of somebody else's."""

import shutil
from pathlib import Path

from common.errors import VceError

MARK = ".built-by-vce"  # no output of a rule: Snakemake removes those before a job


def check_ours(out: Path) -> None:
    """Raises VceError unless `out` is absent, empty, or was built here earlier: all that is in it goes."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise VceError(f"{out}: holds files that are not ours, and would be replaced; choose a folder of its own")
    if out.exists() and not out.is_dir():
        raise VceError(f"{out}: is a file; choose a folder")


def fresh_beside(out: Path) -> Path:
    """A new folder beside `out`, to be built in."""
    fresh = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / MARK).touch()
    return fresh


def put_in_place(fresh: Path, out: Path) -> None:
    """Let a finished folder take the place of an earlier one."""
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
