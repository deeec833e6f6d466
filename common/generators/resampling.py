"""In-fillers that solve every image anew, with nothing trained on masks (FIDO spec §8, §9.2): for evaluation.

`RePaint` samples hidden pixels given kept ones from an unconditional diffusion model; `DeepInpainting` fits an
untrained network to the kept pixels and reads off the others. Both are a `common.generators.infill.Infill`: images
N×C×H×W in [0, 1], masks `keep` N×M×H×W of 1 (kept) and 0 (hidden), the N `Streams` of the samples, result N×M×C×H×W in
[0, 1]. Neither sees a hidden pixel, and kept pixels come back as they are.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.errors import VceError
from common.explain import Streams
from common.generators.diffusion import TIMESTEPS, ScoreModel
from common.generators.infill import one_per_mask
from common.generators.priors import DeepImagePrior, Optimiser

CHUNK = 64  # images per pass of the network


@dataclass(frozen=True, eq=False)
class RePaint:
    """In-painting with a diffusion model: ancestral sampling in which kept pixels are replaced at every noise level by
    their own noisy versions, and jumps back to more noise (resampling) let hidden pixels adapt to them.

    Lugmayr et al. (CVPR 2022): `steps` noise levels; from every `jump_length`-th of them, `jump_n_sample` − 1 jumps of
    `jump_length` levels back. The default of 50, 10 and 3 costs 130 passes of the network per in-fill; the paper's 250,
    10 and 10 costs 2,410. A short schedule approximates: for data of independent pixels N(μ, s²) the samples'
    deviation is 11 % (s = .3 in y = 2x − 1) to 21 % (s = .1) too small at 50 steps, 4 % to 8 % at 250. Raises VceError
    for a schedule that does not exist.
    """

    model: ScoreModel
    steps: int = 50
    jump_length: int = 10
    jump_n_sample: int = 3
    composites = True
    constant = False

    def __post_init__(self):
        # the scheduler starts from noise at timestep (steps − 1)·(1000 // steps), which has to be near the last
        if self.steps < 10 or TIMESTEPS % self.steps:
            raise VceError(f"RePaint: steps {self.steps} must be at least 10 and divide {TIMESTEPS}")
        if self.jump_length < 1 or self.jump_n_sample < 1:
            raise VceError(
                f"RePaint: jump_length {self.jump_length} and jump_n_sample {self.jump_n_sample} must be at least 1"
            )

    def _scheduler(self):
        from diffusers import RePaintScheduler

        # eta 1 is the paper's ancestral sampling; diffusers' default 0 does not add noise
        scheduler = RePaintScheduler(TIMESTEPS, beta_schedule="squaredcos_cap_v2", eta=1.0)
        scheduler.set_timesteps(self.steps, self.jump_length, self.jump_n_sample)
        return scheduler

    @property
    def passes(self) -> int:
        """Forward passes of the network per in-fill."""
        timesteps = self._scheduler().timesteps
        return 1 + int((timesteps[1:] < timesteps[:-1]).sum())

    @torch.no_grad()
    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        x, m = one_per_mask(images, keep)
        # a seed per mask of 2 × 24 bits, all that a uniform float32 holds
        high, low = (rng.uniform((keep.shape[1], 2), "infill.repaint.seed").flatten(0, 1) * 2**24).long().unbind(1)
        start = rng.normal((keep.shape[1], *images.shape[1:]), "infill.repaint.start").flatten(0, 1)
        seeds = (high << 24 | low).split(CHUNK)
        chunks = zip(x.split(CHUNK), m.split(CHUNK), start.split(CHUNK), seeds, strict=True)
        sampled = torch.cat([self._sample(*chunk) for chunk in chunks])
        return torch.where(m > 0, x, sampled).unflatten(0, keep.shape[:2])

    def _sample(self, x: Tensor, m: Tensor, y: Tensor, seeds: Tensor) -> Tensor:
        """B images in [0, 1] from B images, masks B×1×H×W, starting noise y and seeds."""
        from diffusers.utils.torch_utils import randn_tensor

        scheduler = self._scheduler()
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        known = torch.where(m > 0, 2 * x - 1, 0.0)
        stride = TIMESTEPS // self.steps
        alpha_bar = torch.cat([torch.ones(1), scheduler.alphas_cumprod[::stride]])  # after 0, 1, ... strides of noise
        last = TIMESTEPS
        for t in scheduler.timesteps.tolist():
            if t < last:
                noise = self.model.predict_noise(y, torch.full((len(y),), float(t)))
                y = scheduler.step(noise, t, y, known, m, generators).prev_sample
            else:
                # diffusers' `undo_step` noises y with the betas of the level above, to more than the model is told of
                ratio = alpha_bar[t // stride] / alpha_bar[t // stride - 1]
                y = ratio.sqrt() * y + (1 - ratio).sqrt() * randn_tensor(y.shape, generators)
            last = t
        return ((y + 1) / 2).clamp(0, 1)


@dataclass(frozen=True)
class DeepInpainting:
    """Deep-image-prior in-painting: an untrained network fitted to the kept pixels by mean squared error, stopped after
    `iterations` steps of Adam; hidden pixels are what its architecture makes of them.

    Ulyanov et al. (CVPR 2018). All N·M queries are one batched network, each with weights of its own. With nothing kept
    there is nothing to fit: the answer is then what the untrained prior draws.
    """

    prior: DeepImagePrior
    iterations: int = 100
    composites = True
    constant = False

    def __call__(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        return torch.where(keep[:, :, None] > 0, images[:, None], self.fit(images, keep, rng))

    @torch.enable_grad()
    def fit(self, images: Tensor, keep: Tensor, rng: Streams) -> Tensor:
        """The fitted networks' images N×M×C×H×W in [0, 1], kept pixels as the networks draw them."""
        x, m = one_per_mask(images, keep)
        known, kept = x * m, (m.flatten(1).sum(1) * x.shape[1]).clamp_min(1)
        optimiser = Optimiser(self.prior, self.prior.initial(_per_mask(rng, keep.shape[1])))
        for _ in range(self.iterations):
            optimiser.step((m * optimiser.images() - known).square().flatten(1).sum(1) / kept)
        return optimiser.images().detach().unflatten(0, keep.shape[:2])


def _per_mask(rng: Streams, masks: int) -> Streams:
    """N·M streams, one per sample and mask."""
    rows = rng[[row for row in range(len(rng)) for _ in range(masks)]]
    return replace(rows, image_ids=tuple(f"{name}#{row % masks}" for row, name in enumerate(rows.image_ids)))
