"""What cells are called in tables and figures."""

import re

FILLS = {
    "mean": "Mean",
    "blur": "Blur",
    "random": "Random",
    "local": "Local",
    "vae": "VAE",
    "net": "in-painting net",
    "road": "linear imputation",
    "biharmonic": "biharmonic",
    "repaint": "RePaint",
    "dip": "deep prior",
    "background": "true background",
}
# whose maps are searched, with an in-fill
OBJECTIVES = {"ssr": "FIDO SSR", "sdr": "FIDO SDR", "bbmp": "BBMP", "bbmp-sdr": "BBMP, SDR"}
BASELINES = {
    "max": "Max",
    "center": "Center",
    "box": "true box",
    "object": "true mask",
    "random": "random order",
    "gradient": "gradient × input",
    "rise": "RISE",
    "extremal": "extremal mask",
    "masker": "amortised masker",
}
SETTINGS = {"lam": "lam", "grid": "grid", "tv": "tv", "observed": "seen", "draw": "draw"}


def cell_name(method: str, fill: str = "", **settings: float | None) -> str:
    """ssr/net, and what differs from the recipe: ssr/net/lam0.05."""
    parts = [method, fill, *(f"{SETTINGS[key]}{value:g}" for key, value in settings.items() if value is not None)]
    return "/".join(part for part in parts if part)


def parse_name(name: str) -> tuple[str, str, dict[str, float]]:
    """Method, in-fill and settings of a cell's name: the inverse of `cell_name`."""
    method, *rest = name.split("/")
    parts = [re.fullmatch(r"([a-z]+)([-+.e0-9]*)", part).groups() for part in rest]
    keys = {short: key for key, short in SETTINGS.items()}
    settings = {keys[word]: float(value) for word, value in parts if value}
    return method, "".join(word for word, value in parts if not value), settings


def title(name: str) -> str:
    """A cell in words: FIDO SSR, in-painting net."""
    method, *rest = name.split("/")
    return ", ".join([{**OBJECTIVES, **BASELINES}.get(method, method), *(FILLS.get(part, part) for part in rest)])
