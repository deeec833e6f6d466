"""From an image to a latent that draws it: the encoder of a VAE, or an optimisation per image for a generator without
one. A counterfactual of a real image starts at what comes out, never at the image itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from common.explain import Streams
from common.generators.vae import VAE
from papers.contrastive.systems import System

STARTS, STEPS, RATE = 4, 300, 0.1
PULL = 1e-4  # of the latent's mean square, beside the mean squared pixel error: where the prior has its mass


def invert(
    images: Tensor, system: System, rng: Streams, callback: Callable[[dict], None] | None = None
) -> tuple[Tensor, Tensor]:
    """Latents N×d of N images, and the N mean squared pixel errors of what they draw.

    Of `STARTS` draws from the prior the latent that ends nearest to the image is kept; each image has its own stream.
    """
    vae = getattr(system.G, "__self__", None)
    if isinstance(vae, VAE):
        w = vae.latents(images)[0]
        with torch.no_grad():
            return w, (system.G(w) - images).square().flatten(1).mean(1)
    n, shape = len(images), (STARTS, system.d)
    uniform, normal = rng.uniform((STARTS,), "start component"), rng.normal(shape, "start")
    z = system.prior(uniform.flatten(), normal.flatten(0, 1)).requires_grad_()
    wanted = images.repeat_interleave(STARTS, 0)
    adam = torch.optim.Adam([z], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for step in range(STEPS):
        with torch.enable_grad():
            error = (system.G(z) - wanted).square().flatten(1).mean(1)
            (z.grad,) = torch.autograd.grad((error + PULL * z.square().mean(1)).sum(), z)
        adam.step()
        schedule.step()
        if callback:
            callback({"step": step + 1, "steps": STEPS, "error": error.detach()})
    with torch.no_grad():
        error = (system.G(z) - wanted).square().flatten(1).mean(1).view(n, STARTS)
    best = error.argmin(1)
    return z.detach().view(n, *shape)[torch.arange(n), best], error[torch.arange(n), best]
