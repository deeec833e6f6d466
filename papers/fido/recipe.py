"""The settings of FIDO's cells: what all share, and what a sweep varies."""

from collections.abc import Iterable
from dataclasses import dataclass

from common.scales import parse_recipe
from papers.fido.method import Settings
from papers.fido.names import cell_name, parse_name


@dataclass(frozen=True)
class Recipe:
    """The settings that all cells share, fields of `papers.fido.method.Settings`: `search`, and what of them `bbmp`
    replaces; the `area` of the extremal mask, as a share of the image."""

    search: dict[str, float]
    bbmp: dict[str, float]
    area: float

    def settings(self, method: str, **replaced: float) -> Settings:
        """Those of a method's cells, some of them replaced. Raises VceError for a wrong field."""
        return parse_recipe(Settings, self.search | (self.bbmp if method.startswith("bbmp") else {}) | replaced)


def sweep(names: Iterable[str], setting: str, recipe: Recipe) -> dict[str, tuple[str, float]]:
    """The cells among `names` that differ from their base METHOD/FILL in one setting alone, the base with the recipe's
    value among them: base and value by name, in order of both. A base of which no such cell is there is no sweep."""
    found = {}
    for name in names:
        method, fill, replaced = parse_name(name)
        if fill and set(replaced) <= {setting}:
            default = getattr(recipe.settings(method), setting, 0)  # a draw is no setting of the search
            found[name] = (cell_name(method, fill), replaced.get(setting, default))
    swept = {base for name, (base, _) in found.items() if name != base}
    return {name: cell for name, cell in sorted(found.items(), key=lambda item: item[1]) if cell[0] in swept}
