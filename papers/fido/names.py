"""What cells are called in tables and figures. Imports no torch: the workflow reads it."""

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


def title(name: str) -> str:
    """A cell in words: FIDO SSR, in-painting net."""
    method, *rest = name.split("/")
    return ", ".join([{**OBJECTIVES, **BASELINES}.get(method, method), *(FILLS.get(part, part) for part in rest)])
