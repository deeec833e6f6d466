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
    """`G` maps N×d standard normal latents to images; it and the classifiers behind `labels` are frozen. A shift is
    asked for the first `m` labels alone; the others are decisions."""

    G: Generator
    labels: Labels
    d: int
    m: int

    @property
    def asked(self) -> Labels:
        """The labels that a shift is trained on."""
        return Labels(self.labels.names[: self.m], self.labels.classifiers[: self.m])


def packaged_faces() -> System:
    """The packaged face GAN with smile, gender and age classifiers: generator and classifiers have different people and
    data, and none is retrained (spec §9.6). Age is a decision alone: a move of two pixels changes that label of every
    fourth of these faces, and no shift was found that steers it. Raises VceError when weights cannot be fetched."""
    older = tuple(k for k, years in enumerate(AGES) if int(years) >= OLDER)
    seen = {
        "smile": (expression(), (EXPRESSIONS.index("happy"),)),
        "male": (gender(), (GENDERS.index("male"),)),
        "older": (age(), older),
    }
    return System(face_gan(), Labels(tuple(seen), tuple(seen.values())), LATENT, m=2)
