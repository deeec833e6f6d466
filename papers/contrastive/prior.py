"""Where latents come from: a prior maps N uniform and N×d standard normal draws to N×d latents, so that a latent
depends on the draws of its own stream alone."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import VceError

Prior = Callable[[Tensor, Tensor], Tensor]


def standard_normal(uniform: Tensor, normal: Tensor) -> Tensor:
    """What GANs are trained with."""
    return normal


@dataclass(frozen=True)
class Mixture:
    """K Gaussians: `weights` K, `means` K×d and `roots` K×d×d, the Cholesky factors of their full covariances."""

    weights: Tensor
    means: Tensor
    roots: Tensor

    def __call__(self, uniform: Tensor, normal: Tensor) -> Tensor:
        k = torch.searchsorted(self.weights.cumsum(0), uniform.double()).clamp(max=len(self.weights) - 1)
        return self.means[k] + torch.einsum("nij,nj->ni", self.roots[k], normal)

    @classmethod
    def fit(cls, latents: Tensor, components: int, seed: int) -> "Mixture":
        """Maximum likelihood for N×d latents, in double precision, where covariances stay positive definite. Raises
        VceError when one is singular all the same."""
        from sklearn.mixture import GaussianMixture

        model = GaussianMixture(components, reg_covar=0.0, random_state=seed, max_iter=300)
        try:
            model.fit(latents.double().numpy())
            roots = torch.linalg.cholesky(torch.from_numpy(model.covariances_))
        except (ValueError, torch.linalg.LinAlgError) as error:
            raise VceError(
                f"the covariance of {len(latents)} latents is singular in {components} components; fit fewer"
                f" `components`, or more latents, or drop a dimension that does not vary ({str(error).splitlines()[0]})"
            ) from error
        weights, means = torch.from_numpy(model.weights_), torch.from_numpy(model.means_)
        return cls(weights, means.float(), roots.float())
