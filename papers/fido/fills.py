"""The in-fillers by the names that cells and tables use, for one world.

`net`, the inpainting network, is this replication's stand-in for the paper's CA-GAN; `vae` is a conditional VAE.
No cell optimises against `road`, `biharmonic`, `repaint`, `dip` and `background`: they evaluate.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from common.data import datasets, scenes
from common.errors import VceError
from common.explain import Streams
from common.generators import infill
from common.generators.diffusion import load_diffusion
from common.generators.inpainting import Learned, load_infill
from common.generators.priors import DeepImagePrior
from common.generators.resampling import DeepInpainting, RePaint

SEARCHED = ("mean", "blur", "random", "local", "vae", "net")  # a search may use these
SIGMA = 2.5  # of the blur, pixels of 32: by pure scaling of the paper's, 1.4 would leak the whole shape
WINDOW = 5  # of the local mean, pixels: the least that is odd and above pure scaling, 2.1
REPAINT = (25, 5, 3)  # levels, jump length, visits: 65 passes


@dataclass(frozen=True)
class TrueBackground:
    """The scene without its object, rendered: what really is behind it. Not p(hidden | kept), since it ignores what is
    kept of the object; it knows the image ids, and so depends on no pixel."""

    world: str
    composites = False
    constant = True

    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        clean = _background(self.world, tuple(image.split("|")[0] for image in rng.image_ids))
        return clean[:, None].expand(-1, keep.shape[1], -1, -1, -1)


@functools.lru_cache(maxsize=64)
def _background(world: str, ids: tuple[str, ...]) -> Tensor:
    return scenes.render(scenes.emptied(datasets.scene_factors(world, ids)))[0]


@dataclass
class Fills:
    """The in-fillers of a `world`, made when they are asked for: `colour` C is the mean of its training images; learned
    ones are read from `folder`."""

    world: str
    colour: Tensor
    folder: Path
    made: dict[str, infill.Infill] = field(default_factory=dict)

    @classmethod
    def of(cls, world: str, systems: datasets.Images, folder: Path) -> "Fills":
        """From the images that the explained systems were trained on."""
        return cls(world, systems.images.mean((0, 2, 3)), folder)

    def __getitem__(self, name: str) -> infill.Infill:
        """Raises VceError for an unknown name."""
        makers = {
            "mean": lambda: infill.Mean(self.colour),
            "blur": lambda: infill.Blur(SIGMA),
            "random": infill.Random,
            "local": lambda: infill.Local(WINDOW, self.colour),
            "vae": lambda: Learned(load_infill(self.folder / f"{self.world}-cvae.safetensors")),
            "net": lambda: Learned(load_infill(self.folder / f"{self.world}-unet.safetensors")),
            "road": lambda: infill.LinearImputation(self.colour),
            "biharmonic": lambda: infill.Biharmonic(self.colour),
            "repaint": lambda: RePaint(load_diffusion(self.folder / f"{self.world}-diffusion.safetensors"), *REPAINT),
            "dip": lambda: DeepInpainting(DeepImagePrior(datasets.world(self.world).image_shape)),
            "background": lambda: TrueBackground(self.world),
        }
        if name not in makers:
            raise VceError(f"in-fill {name!r} is unknown; choose one of {', '.join(makers)}")
        if name not in self.made:
            self.made[name] = makers[name]()
        return self.made[name]
