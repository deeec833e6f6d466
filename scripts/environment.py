"""Write environment.yml, for conda, from pyproject.toml and requirements.lock: `python scripts/environment.py`.

It lists the direct dependencies at the versions of the lock; pip adds what they need. Needs the standard library alone.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# its metadata forbids every torch that it runs with, so no resolver accepts it beside the others
WITHOUT_DEPENDENCIES = ("facenet-pytorch",)


def normal(name: str) -> str:
    """A package name as the lock spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """{package: version} of the text of a requirements.lock."""
    return {normal(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==([^\s;\\]+)", text)}


def direct(pyproject: dict) -> list[str]:
    """Names of the dependencies of a parsed pyproject.toml, the dev group included, sorted."""
    requirements = pyproject["project"]["dependencies"] + pyproject["dependency-groups"]["dev"]
    return sorted({normal(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements})


def environment(pyproject: dict, lock: str) -> str:
    """The text of environment.yml. Raises KeyError for a dependency that the lock does not hold."""
    versions = locked(lock)
    pins = {name: f"{name}=={versions[name]}" for name in direct(pyproject)}
    apart = " ".join(pins.pop(name) for name in WITHOUT_DEPENDENCIES)
    return "\n".join(
        [
            "# Written by scripts/environment.py from pyproject.toml and requirements.lock; run: make lock",
            "# conda env create -f environment.yml && conda activate vce",
            f"# pip install --no-deps {apart}",
            "# pip install --no-deps --no-build-isolation -e .",
            "name: vce",
            "channels:",
            "  - conda-forge",
            "  - nodefaults",
            "dependencies:",
            "  - python=3.11",
            "  - pip",
            "  - pip:",
            *(f"      - {pin}" for pin in pins.values()),
            "",
        ]
    )


if __name__ == "__main__":
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (ROOT / "environment.yml").write_text(environment(pyproject, (ROOT / "requirements.lock").read_text()))
