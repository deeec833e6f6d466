"""A scale is one file of config/; it may build on another and say only what differs. Imports no torch."""

from pathlib import Path
from typing import TypeVar

import yaml

from common.errors import VceError
from common.files import ROOT

Recipe = TypeVar("Recipe")


def load_scale(name: str, root: Path = ROOT) -> dict:
    """The configuration of a scale: its file laid over that of its `base`, mapping by mapping; lists are replaced.

    Raises VceError with the known scales when there is no such file, or when a chain of bases closes on itself.
    """
    return _load(name, root, ())


def _load(name: str, root: Path, above: tuple[str, ...]) -> dict:
    path = root / "config" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise VceError(f"scale {name!r}: there is no {path.relative_to(root)}; choose one of {known}")
    if name in above:
        raise VceError(f"{path.relative_to(root)}: its base leads back to itself; remove `base`")
    own = yaml.safe_load(path.read_text())
    base = own.pop("base", None)
    return own if base is None else _over(_load(base, root, (*above, name)), own)


def _over(base: dict, own: dict) -> dict:
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _over(base[key], value) if both else value
    return merged


def parse_recipe(kind: type[Recipe], fields: dict) -> Recipe:
    """A recipe, a dataclass, from a config file's fields. Raises VceError naming the field that is wrong."""
    try:
        return kind(**fields)
    except TypeError as error:
        raise VceError(f"recipe {fields}: {error}; fix it in config/") from error
