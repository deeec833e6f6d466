"""What is explained: a generator, the labels that are steered in its images, and the decisions about them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from common.classifiers.architectures import digit_cnn, grid_cnn
from common.classifiers.demographics import AGES, GENDERS, age, gender
from common.classifiers.expression import EXPRESSIONS, expression
from common.data.faces import SIZE
from common.errors import VceError
from common.explain import Streams
from common.generators.gan import LATENT, face_gan
from common.generators.vae import VAE
from common.tensors import not_a, read_tensors, write_tensors
from papers.contrastive import faces
from papers.contrastive.labels import AgainstRest, Binary, Labels
from papers.contrastive.method import Generator
from papers.contrastive.prior import Mixture, Prior, standard_normal

OLDER = 30  # years: the faces of the GAN are young, and this parts them about in half
POPULATION = 0  # the seed of the latents, whatever the training seed
KIND = "face world"


@dataclass(frozen=True)
class System:
    """`G` maps N×d latents to images, `prior` draws them; `asked` are the labels that a shift is trained on and asked
    for, `decisions` all others. Where there is one, an `auditor` knows the asked labels from other images, and
    `nuisances` reads what no label is about, in standard deviations. `mutual`: asked labels are decisions too.

    G and all networks are frozen. Raises VceError when two labels have one name, or one is its own decision.
    """

    name: str
    G: Generator
    d: int
    asked: Labels
    decisions: Labels
    prior: Prior = standard_normal
    auditor: Labels | None = None
    nuisances: nn.Module | None = None
    descendants: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mutual: bool = False

    def __post_init__(self):
        names = self.labels.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise VceError(
                f"label {twice!r} occurs twice: a decision that is its own attribute is necessary and sufficient for"
                " itself and tells nothing; name another"
            )

    @property
    def m(self) -> int:
        return len(self.asked.names)

    @cached_property
    def labels(self) -> Labels:
        """Asked labels and decisions, in this order."""
        names = self.asked.names + self.decisions.names
        return Labels(names, self.asked.networks + self.decisions.networks, self.asked.transforms)

    def population(self, n: int) -> tuple[tuple[str, ...], Tensor]:
        """Ids and latents of n images, the same whatever n and the training seed of a shift."""
        ids = tuple(f"latent-{k:05d}" for k in range(n))
        streams = Streams(POPULATION, ids, (0,) * n)
        return ids, self.prior(streams.uniform((), "component"), streams.normal((self.d,), "latent"))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n new latents."""
        return self.prior(torch.rand(n, generator=generator), torch.randn(n, self.d, generator=generator))

    @property
    def modules(self) -> list[nn.Module]:
        """Everything that must stay as it is."""
        generator = getattr(self.G, "__self__", self.G)  # a VAE's decoder is a method of it
        parts = (generator, *self.labels.networks, *(self.auditor.networks if self.auditor else ()), self.nuisances)
        return [part for part in parts if isinstance(part, nn.Module)]


def packaged_faces() -> System:
    """The packaged face GAN with smile, gender and age classifiers: generator and classifiers have different people and
    data, and none is retrained (spec §9.6). Age is a decision alone: a move of two pixels changes that label of every
    fourth of these faces, and no shift was found that steers it. Raises VceError when weights cannot be fetched."""
    older = tuple(k for k, years in enumerate(AGES) if int(years) >= OLDER)
    smile = AgainstRest(expression(), (EXPRESSIONS.index("happy"),))
    male = AgainstRest(gender(), (GENDERS.index("male"),))
    decisions = Labels(("older",), (AgainstRest(age(), older),))
    return System("face-gan", face_gan(), LATENT, Labels(("smile", "male"), (smile, male)), decisions, mutual=True)


# networks of a face world: their architecture, and how many labels each has
NETWORKS: dict[str, tuple[Callable[[int, int], nn.Module], int]] = {
    "annotator": (digit_cnn, len(faces.ATTRIBUTES)),
    "rules": (digit_cnn, len(faces.DECISIONS)),
    "matched-annotator": (digit_cnn, len(faces.ATTRIBUTES)),
    "matched-rules": (digit_cnn, len(faces.DECISIONS)),
    "auditor": (grid_cnn, len(faces.ATTRIBUTES)),
    "confounded": (digit_cnn, 1),
    "balanced": (digit_cnn, 1),
}
BIASED = ("smile-confounded", "smile-balanced")  # decisions about a smile, by what the mustache said in training


def nuisance_reader() -> nn.Module:
    """N×3×32×32 images to N×4: where the face is, its size and its skin, in standard deviations."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 4))


def network(name: str) -> nn.Module:
    """An untrained network of `NETWORKS`: N×3×32×32 images to N×2×k logits, absent and present."""
    build, k = NETWORKS[name]
    return nn.Sequential(build(3, 2 * k), nn.Unflatten(1, (2, k)))


@dataclass(frozen=True)
class FaceWorld:
    """What one training seed knows of rendered faces: a VAE with a mixture as its prior, classifiers, and a reader of
    nuisances."""

    vae: VAE
    prior: Mixture
    networks: dict[str, nn.Module]
    nuisances: nn.Module

    def system(self, name: str) -> System:
        """`faces`: classifiers from independent attributes and other noise than the generator's. `faces-matched`: from
        the generator's own distribution. `faces-partial`: as `faces`, but nobody asks about glasses, a true cause.

        Raises VceError for another name.
        """
        if name not in SYSTEMS:
            raise VceError(f"system {name!r} is unknown; choose one of {', '.join(SYSTEMS)}")
        matched = "matched-" if name == "faces-matched" else ""
        annotator, rules = self.networks[f"{matched}annotator"], self.networks[f"{matched}rules"]
        asked = tuple(k for k, label in enumerate(faces.ATTRIBUTES) if (name, label) != ("faces-partial", "glasses"))
        left = tuple(k for k in range(len(faces.ATTRIBUTES)) if k not in asked)
        smiles = (Binary(self.networks["confounded"]), Binary(self.networks["balanced"]))
        decisions = (*(faces.ATTRIBUTES[k] for k in left), *faces.DECISIONS, *BIASED)
        networks = (*((Binary(annotator, left),) if left else ()), Binary(rules), *smiles)
        names = tuple(faces.ATTRIBUTES[k] for k in asked)
        auditor = Labels(names, (Binary(self.networks["auditor"], asked),), ())
        descendants = {"old": tuple(names.index(child) for child in ("gray", "glasses") if child in names)}
        return System(
            name, self.vae.decode, self.d, Labels(names, (Binary(annotator, asked),), ()),
            Labels(decisions, networks, ()), self.prior, auditor, self.nuisances, descendants,
        )  # fmt: skip

    @property
    def d(self) -> int:
        return self.prior.means.shape[1]


SYSTEMS = ("faces", "faces-matched", "faces-partial")


def save_world(world: FaceWorld, path: Path, facts: dict) -> None:
    """Write a face world atomically; `facts` are kept as JSON."""
    parts = {"vae": world.vae.state_dict(), "prior": vars(world.prior), "nuisances": world.nuisances.state_dict()}
    parts |= {name: module.state_dict() for name, module in world.networks.items()}
    tensors = {f"{part}/{key}": value for part, state in parts.items() for key, value in state.items()}
    vae = {name: getattr(world.vae, name) for name in ("architecture", "image_shape", "latent", "widths")}
    write_tensors(path, KIND, tensors, {"vae": vae, "facts": facts})


def load_world(path: Path | str) -> tuple[FaceWorld, dict]:
    """The world in a file of `save_world`, in evaluation mode, frozen, and its facts. Raises VceError when the file is
    damaged or is not one of ours."""
    header, tensors = read_tensors(path, KIND)

    def part(name: str) -> dict[str, Tensor]:
        return {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == name}

    try:
        vae = VAE(**header["vae"])
        networks = {name: network(name) for name in NETWORKS}
        nuisances = nuisance_reader()
        for name, module in {"vae": vae, "nuisances": nuisances, **networks}.items():
            module.load_state_dict(part(name), strict=True)
            module.eval().requires_grad_(False)
        return FaceWorld(vae, Mixture(**part("prior")), networks, nuisances), header["facts"]
    except (KeyError, TypeError, RuntimeError) as error:
        raise not_a(KIND, path, "its tensors are not those of its networks") from error


def load_system(name: str, world: Path | None) -> System:
    """The system called `name`: `face-gan`, or one of the face world in a file. Raises VceError for others."""
    if name == "face-gan":
        return packaged_faces()
    if world is None:
        raise VceError(f"system {name!r}: give the file of its face world, or choose face-gan")
    return load_world(world)[0].system(name)
