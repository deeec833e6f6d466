"""What is explained: a generator with the labels that classifiers see in its images."""

from dataclasses import dataclass

from common.classifiers.demographics import AGES, GENDERS, age, gender
from common.classifiers.expression import EXPRESSIONS, expression
from common.generators.gan import LATENT, face_gan
from papers.contrastive.labels import Labels
from papers.contrastive.method import Generator

OLDER = 30  # years: the faces of the GAN are young, and this parts them about in half


@dataclass(frozen=True)
class System:
    """`G` maps N×d standard normal latents to images; both it and the classifiers behind `labels` are frozen."""

    G: Generator
    labels: Labels
    d: int


def packaged_faces() -> System:
    """The packaged face GAN with smile, gender and age classifiers: generator and classifiers have different people and
    data, and none is retrained (spec §9.6). Raises VceError when weights cannot be fetched."""
    older = tuple(k for k, years in enumerate(AGES) if int(years) >= OLDER)
    seen = {
        "smile": (expression(), (EXPRESSIONS.index("happy"),)),
        "male": (gender(), (GENDERS.index("male"),)),
        "older": (age(), older),
    }
    return System(face_gan(), Labels(tuple(seen), tuple(seen.values())), LATENT)
