"""What cells are called in tables and figures. Imports no torch: the workflow reads it."""

# what a search is pushed to: the change of another cell, that cell's change of its own drawing, its confidence
MARKS = {"change": "@", "own": "@own:", "confidence": "@p:"}


def cell_name(method: str, manifold: str = "", reading: str = "P-A", like: str = "", by: str = "change") -> str:
    """inr+duq/p-0: the prior, the companion of its manifold term, what is made progressive unless it is P-A; iso@inr:
    pushed to the change of another cell, iso@p:inr to its confidence."""
    name = method + (f"+{manifold}" if manifold else "") + ("" if reading == "P-A" else f"/{reading.lower()}")
    return f"{name}{MARKS[by]}{like}" if like else name
