"""What cells are called in tables and figures. Imports no torch: the workflow reads it."""

EQUAL = "@"  # iso@inr: ISO pushed to the change of INR
OWN = "@own:"  # iso@own:inr: to INR's change of its own reconstruction


def cell_name(method: str, manifold: str = "", reading: str = "P-A", change_of: str = "", own: bool = False) -> str:
    """inr+duq/p-0: the prior, the companion of its manifold term, what is made progressive unless it is P-A; iso@inr:
    pushed to the change of another cell."""
    name = method + (f"+{manifold}" if manifold else "") + ("" if reading == "P-A" else f"/{reading.lower()}")
    return name + ((OWN if own else EQUAL) + change_of if change_of else "")
