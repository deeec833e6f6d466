"""The artifact registry: `data/NAME.dvc` pins the bytes of `data/NAME`, where they come from and their licence.

A pointer is a DVC file (`outs`) with our own `meta`, so DVC and `common.data.fetch` read the same. Imports no torch.
"""

import difflib
import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from common.errors import VceError
from common.files import ROOT, sha256, write_atomic

NAME = re.compile(r"\w[\w.+-]*(?<!\.dvc)")
PATTERNS = {
    "name": NAME,
    "md5": re.compile(r"[0-9a-f]{32}"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "source": re.compile(r"[\w.-]+==[\w.+!-]+"),
    "member": re.compile(r"[^/\s].*"),
    "license": re.compile(r"\S.*"),
    "url": re.compile(r"https?://\S+"),
}
OPTIONAL = ("source", "member", "url")
FIX = "restore it from git, or write it anew with: vce data add"


@dataclass(frozen=True)
class Artifact:
    """One versioned file: `size` in bytes, `md5` and `sha256` in hexadecimal; only `sha256` decides what is accepted.

    `source` (package==version) and `member` (a path inside its archive) name a carrier package, `url` an official
    address; each is None where there is none. `license` is the licence of the file itself, or says `unknown`.
    """

    name: str
    md5: str
    sha256: str
    size: int
    source: str | None
    member: str | None
    license: str
    url: str | None


def names(root: Path = ROOT) -> list[str]:
    """Names of all artifacts that have a pointer below `root`, sorted."""
    return sorted(path.stem for path in (root / "data").glob("*.dvc"))


def read(name: str, root: Path = ROOT) -> Artifact:
    """The artifact that `data/<name>.dvc` points to.

    Raises VceError when there is no such pointer, or when it is malformed.
    """
    path = root / "data" / f"{name}.dvc"
    if not NAME.fullmatch(name) or not path.is_file():
        closest = difflib.get_close_matches(name, names(root), cutoff=0)
        raise VceError(
            f"data/{name}: no such artifact; see data/*.dvc, the closest are: {', '.join(closest) or 'none'}"
        )
    try:
        document = yaml.safe_load(path.read_text())
        (out,), meta = document["outs"], document["meta"]
        artifact = Artifact(
            name=out["path"],
            md5=out["md5"],
            sha256=meta["sha256"],
            size=out["size"],
            source=meta.get("source"),
            member=meta.get("member"),
            license=meta["license"],
            url=meta.get("url"),
        )
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VceError(f"data/{name}.dvc: not a YAML file ({' '.join(str(error).split())}); {FIX}") from error
    except KeyError as error:
        raise VceError(f"data/{name}.dvc: the field {error} is missing; {FIX}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise VceError(f"data/{name}.dvc: not of the form 'outs: [one file], meta: ...'; {FIX}") from error
    if artifact.name != name:
        raise VceError(f"data/{name}.dvc: it points to {artifact.name!r} instead of {name!r}; {FIX}")
    return _checked(artifact)


def add(
    file: Path | str,
    *,
    source: str | None = None,
    member: str | None = None,
    license: str | None = None,
    url: str | None = None,
    root: Path = ROOT,
) -> Path:
    """Write `data/<file name>.dvc` for the bytes of `file` and return its path; the bytes stay where they are.

    An existing pointer keeps its comments, unknown fields, and each of the four facts that is not given here.
    Raises VceError when the file is not there, a fact is malformed, or a new pointer is given no licence.
    """
    from dvc.utils.serialize import ParseError, dumps_yaml, parse_yaml_for_update

    file = Path(file)
    if not file.is_file():
        raise VceError(f"{file}: no such file; name the file whose bytes data/ shall point to")
    path = root / "data" / f"{file.name}.dvc"
    try:
        document = parse_yaml_for_update(path.read_text(), path) if path.exists() else {"outs": [{}], "meta": {}}
        (out,), meta = document["outs"], document["meta"]
        facts = {"source": source, "member": member, "license": license, "url": url}
        facts = {key: meta.get(key) if value is None else value for key, value in facts.items()}
    except (ParseError, KeyError, TypeError, ValueError) as error:
        raise VceError(f"{path}: not a pointer; delete it or restore it from git") from error
    if facts["license"] is None:
        raise VceError(f"{file}: give its licence with --license (or: --license unknown)")
    with file.open("rb") as handle:
        md5 = hashlib.file_digest(handle, "md5").hexdigest()
    artifact = _checked(Artifact(file.name, md5, sha256(file), file.stat().st_size, **facts))
    out.update(md5=artifact.md5, size=artifact.size, hash="md5", path=artifact.name)
    meta.update({key: asdict(artifact)[key] for key in ("sha256", "source", "member", "license", "url")})
    # in DVC's own layout, long values folded: `dvc repro` writes pointers anew, and git should see no change then
    write_atomic(path, dumps_yaml(document))
    return path


def _checked(artifact: Artifact) -> Artifact:
    where = f"data/{artifact.name}.dvc"
    for field, pattern in PATTERNS.items():
        value = getattr(artifact, field)
        if value is None and field in OPTIONAL:
            continue
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise VceError(f"{where}: {field} is {value!r}, which is not one; {FIX}")
    if type(artifact.size) is not int or artifact.size < 0:
        raise VceError(f"{where}: size is {artifact.size!r}, which is no number of bytes; {FIX}")
    if (artifact.source is None) != (artifact.member is None):
        raise VceError(f"{where}: source and member go together: the package, and the file inside it; {FIX}")
    return artifact
