"""What made a file: rule, module, parameters and data hashes, from Snakemake's own record of the job that wrote it."""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path

RECORDS = Path(".snakemake/metadata")


@dataclass(frozen=True)
class Made:
    """The rule and the command of the job that wrote a file, the module that it ran ("" for none), and its inputs by
    path with their sha256 ("" where Snakemake kept none)."""

    rule: str
    command: str
    module: str
    inputs: dict[str, str]


def made(path: Path, root: Path) -> Made | None:
    """The record of a file below `root`; None when there is none that can be read."""
    name = base64.urlsafe_b64encode(path.relative_to(root).as_posix().encode()).decode()
    try:
        record = json.loads((root / RECORDS / name).read_text())
        hashes = record["input_checksums"]
        inputs = {file: str(hashes.get(file) or "").removeprefix("sha256:") for file in sorted(record["input"])}
        command = re.sub(r" (?:2> >|> )\S*.*$", "", record["shellcmd"] or "")  # where it wrote its log
        module = re.search(r"python -m ([\w.]+)", command)
        return Made(record["rule"], command, module[1] if module else "", inputs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
