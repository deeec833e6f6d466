"""The systems of the ablation grid: a VAE and an ensemble, which reads images, reconstructions or latents.

Space (Clarity spec §2.2): `p` classifies images, `pr` reconstructions, `pr-sample` decoded samples of q(z|x); `l-mean`
and `l-sample` classify latents and were trained on μ(x) or on fresh samples of q(z|x). `l-sample` is Clarity. A system
is called `<space>-m<M>`, the first M members, or `<space>.<k>`, member k alone; `-log` at its end combines them by the
mean log-probability.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.classifiers.ensembles import Ensemble, fit_temperature
from common.data import datasets
from common.errors import VceError
from common.files import ROOT
from common.generators.vae import VAE
from common.tensors import not_a, read_tensors, write_tensors
from papers.clarity.names import parse

LATENT = ("l-mean", "l-sample")
RECONSTRUCTED = ("pr", "pr-sample")
SHIPPED = 10  # members of the system that is explained by default (spec §7)


class System(nn.Module):
    """A classifier that a search in the VAE's latent space can explain. Maps N×C×H×W images in [0, 1] to N×K
    log-probabilities; `log_probabilities(z)` maps N×d latents to them, through the decoder unless it reads latents.
    """

    def __init__(self, name: str, space: str, world: str, vae: VAE, ensemble: Ensemble):
        super().__init__()
        self.name, self.space, self.world, self.vae, self.ensemble = name, space, world, vae, ensemble
        spec = datasets.world(world)
        self.image_shape, self.class_names = spec.image_shape, spec.class_names

    @property
    def reads_latents(self) -> bool:
        return self.space in LATENT

    def log_probabilities(self, z: Tensor) -> Tensor:
        return self.ensemble(z if self.reads_latents else self.vae.decode(z))

    def forward(self, images: Tensor) -> Tensor:
        if self.reads_latents or self.space in RECONSTRUCTED:
            return self.log_probabilities(self.vae.encode(images)[0])
        return self.ensemble(images)

    def inputs(self, images: Tensor) -> Tensor:
        """What the ensemble gets of N×C×H×W images: themselves, their reconstructions or μ(x)."""
        if self.reads_latents:
            return self.vae.latents(images)[0]
        return self.vae.reconstruct(images) if self.space in RECONSTRUCTED else images


@dataclass(frozen=True)
class Systems:
    """The VAE of one world and training seed, one ensemble per space with all members, and what is known of them:
    `temperatures` by system; `class_means` K×d of μ(x) over the training images."""

    world: str
    seed: int
    vae: VAE
    ensembles: dict[str, Ensemble]
    temperatures: dict[str, float]
    class_means: Tensor

    def names(self, space: str, sizes: list[int]) -> list[str]:
        """The systems of one space and some ensemble sizes; size 1 is every single member that was calibrated."""
        mine = [name for name in self.temperatures if parse(name)[0] == space and not name.endswith("-log")]
        return [name for name in mine if len(parse(name)[1]) in sizes]

    def system(self, name: str) -> System:
        """The system called `name`. Raises VceError with the known names."""
        if name not in self.temperatures:
            raise VceError(f"system {name!r} is unknown; choose one of {', '.join(self.temperatures)}")
        space, members, combination = parse(name)
        temperature = self.temperatures[name]
        ensemble = self.ensembles[space].only(members, temperature=temperature, combination=combination)
        return System(name, space, self.world, self.vae, ensemble).eval()


def calibrated(systems: dict[str, Ensemble], world: str, vae: VAE, names: list[str], held_out: datasets.Images) -> dict:
    """The temperature of every named system, of least NLL on held-out images (spec §2.2)."""
    temperatures = {}
    for name in names:
        space, members, combination = parse(name)
        ensemble = systems[space].only(members, temperature=1.0, combination=combination)
        fit_temperature(ensemble, System(name, space, world, vae, ensemble).inputs(held_out.images), held_out.labels)
        temperatures[name] = ensemble.temperature.item()
    return temperatures


def save_systems(systems: Systems, path: Path, facts: dict) -> None:
    """Write a VAE and its ensembles as one file, atomically."""
    vae = systems.vae
    header = {
        "world": systems.world,
        "seed": systems.seed,
        "vae": {name: getattr(vae, name) for name in ("architecture", "image_shape", "latent", "widths")},
        "ensembles": {
            space: {"architecture": e.architecture, "shape": e.shape, "n_classes": e.n_classes}
            for space, e in systems.ensembles.items()
        },
        "temperatures": systems.temperatures,
        "facts": facts,
    }
    tensors = {f"vae|{name}": value for name, value in vae.state_dict().items()}
    for space, ensemble in systems.ensembles.items():
        tensors |= {f"{space}|{name}": value for name, value in ensemble.state.items()}
    write_tensors(path, "systems", {**tensors, "class_means": systems.class_means}, header)


def load_systems(path: Path | str) -> Systems:
    """The systems in a file of `save_systems`, frozen. Raises VceError when it is damaged or not one of ours, or when
    its VAE does not fit the images of its world."""
    header, tensors = read_tensors(path, "systems")

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.split("|", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{prefix}|")}

    try:
        shape, facts = tuple(header["vae"]["image_shape"]), header["vae"]
        vae = VAE(facts["architecture"], shape, facts["latent"], tuple(facts["widths"]))
        vae.load_state_dict(part("vae"), strict=True)
        ensembles = {
            space: Ensemble(fields["architecture"], tuple(fields["shape"]), fields["n_classes"], part(space))
            for space, fields in header["ensembles"].items()
        }
        world, means, temperatures = header["world"], tensors["class_means"], header["temperatures"]
        with torch.no_grad():
            for space, ensemble in ensembles.items():
                ensemble(torch.zeros(1, *(ensemble.shape if space not in LATENT else (means.shape[1],))))
    except (AttributeError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise not_a("systems", path, "its tensors are not those of its networks") from error
    if shape != datasets.world(world).image_shape:
        expected = datasets.world(world).image_shape
        raise VceError(f"{path}: its VAE decodes {shape} images, those of {world} are {expected}; train it anew")
    vae.eval().requires_grad_(False)
    return Systems(world, header["seed"], vae, ensembles, temperatures, means)


def load_shipped(name: str) -> System:
    """The system that `vce explain` explains: the largest ensemble of Clarity's own reading, `l-sample`, of `name`:
    clarity/mnist or clarity/scenes as this pipeline trained it, of the best scale there is, or a systems file.

    Raises VceError when it has not been trained yet, and for any other classifier.
    """
    trained = {f"clarity/{world}": f"clarity/systems/{world}-0.safetensors" for world in ("mnist", "scenes")}
    if name in trained:
        files = [ROOT / "work" / scale / trained[name] for scale in ("cpu", "smoke")]
        path = next((file for file in files if file.is_file()), None)
        if path is None:
            raise VceError(
                f"{name}: not trained yet; run `snakemake {files[0].relative_to(ROOT)}`, a few minutes, first"
            )
    elif name.endswith(".safetensors"):
        path = Path(name)
    else:
        raise VceError(
            f"--classifier {name}: clarity explains its own latent classifier, no other; choose {' or '.join(trained)},"
            " or a systems file of this pipeline"
        )
    systems = load_systems(path)
    ours = [system for system in systems.temperatures if parse(system)[0] == "l-sample" and "-log" not in system]
    if not ours:
        raise VceError(f"{path}: holds no l-sample ensemble, which Clarity explains; train it anew")
    system = systems.system(max(ours, key=lambda system: (len(parse(system)[1]) <= SHIPPED, len(parse(system)[1]))))
    system.name = f"clarity/{systems.world} {system.name}"
    return system
