"""Which systems there are, and what they are called in tables and figures. Imports no torch: the workflow reads it."""

from collections.abc import Iterable

SPACES = {
    "p": "pixels (P)",
    "pr": "reconstructions (PR)",
    "pr-sample": "decoded samples",
    "pixel-mlp": "pixels, MLP",
    "l-mean": "latent mean (L-mean)",
    "l-sample": "latent sample (L-sample, Clarity)",
    "schut": "adversarial pixel MLPs",
}


def system_names(spaces: Iterable[str], sizes: Iterable[int], singles: int, suffix: str = "") -> list[str]:
    """Names of the systems of some spaces and ensemble sizes; size 1 is the first `singles` members, each alone.
    `suffix` -log is the mean-log combination."""
    return [
        name
        for space in spaces
        for size in sizes
        for name in ([f"{space}.{k}" for k in range(singles)] if size == 1 else [f"{space}-m{size}{suffix}"])
    ]


def parse(name: str) -> tuple[str, list[int], str]:
    """Space, member numbers and combination of a system's name."""
    if "." in name:
        space, member = name.split(".")
        return space, [int(member)], "mixture"
    space, _, count = name.removesuffix("-log").rpartition("-m")
    return space, list(range(int(count))), "mean-log" if name.endswith("-log") else "mixture"


def cell_names(table):
    """The cell of each row of a data frame with columns space and m."""
    return table["space"] + "-m" + table["m"].astype(str)


def cell_of(classifier: str) -> tuple[str, int]:
    """Space, with what marks a variant, and ensemble size of a row's classifier; single members make the cell of
    size 1."""
    variant, _, name = classifier.rpartition(":")
    space, members, combination = parse(name)
    mark = "-log" if combination == "mean-log" else ""
    return f"{variant}:{space}{mark}" if variant else f"{space}{mark}", len(members)
