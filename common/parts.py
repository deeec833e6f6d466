"""The parts of this replication and the words of its verdicts, as they are shown, in order. Imports no torch."""

PARTS = {
    "svce": "Sparse visual counterfactual explanations",
    "clarity": "Clarity: a VAE and an ensemble in its latent space",
    "disc": "DISC: deep inversion with an untrained prior",
    "fido": "FIDO: saliency by generative in-fill",
    "contrastive": "Contrastive counterfactuals: necessity and sufficiency",
    "comparison": "Side by side",
}
VERDICTS = ("supported", "partly", "contradicted", "inconclusive", "not tested")


def in_order(claims: dict[str, dict]) -> dict[str, dict]:
    """Claims by their number, C2 before C10."""
    return dict(sorted(claims.items(), key=lambda item: (len(item[0]), item[0])))
