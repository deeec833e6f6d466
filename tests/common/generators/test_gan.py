"""The packaged face GAN: strict weights, range, and a forward pass by hand."""

import numpy as np
import torch
import torch.nn.functional as F

from common.generators.gan import DCGAN, LATENT, WIDTHS, face_gan


def latents(n):
    return torch.randn(n, LATENT, generator=torch.Generator().manual_seed(0))


def test_images_are_in_range_frozen_and_do_not_depend_on_their_batch():
    G = face_gan()
    images = G(latents(6))
    assert images.shape == (6, *DCGAN.image_shape) and images.min() >= 0 and images.max() <= 1
    assert not G.training and not any(p.requires_grad for p in G.parameters())
    torch.testing.assert_close(G(latents(6)[2:3])[0], images[2], atol=1e-5, rtol=0)
    assert images.std(0).mean() > 0.1  # faces of different people


def test_a_pass_by_hand_gives_the_same_image():
    G, z = face_gan(), latents(2)
    x = z.double()[:, :, None, None]
    state = {key: value.double() for key, value in G.state_dict().items()}
    for number in range(len(WIDTHS)):
        x = F.conv_transpose2d(x, state[f"main.{3 * number}.weight"], **({"stride": 2, "padding": 1} if number else {}))
        mean, variance, gamma, beta = (
            state[f"main.{3 * number + 1}.{name}"].view(1, -1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = ((x - mean) / (variance + 1e-5).sqrt() * gamma + beta).clamp_min(0)
    x = F.conv_transpose2d(x, state["main.12.weight"], stride=2, padding=1).tanh()
    np.testing.assert_allclose(G(z), (x + 1) / 2, atol=1e-5)
