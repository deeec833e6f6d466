"""Deep ensembles as one batched network: M members of independent weights, stacked and run by `vmap`.

Mixture (Lakshminarayanan et al., NeurIPS 2017) p̄(k|x) = 1/M Σ_m p_m(k|x), p_m = softmax(h_m/T), whose gradient lets
the least saturated member lead, ∇log p̄_t = Σ_m w_m ∇log p_{m,t} with w_m = p_{m,t}/Σ_j p_{j,t}; and the mean-log
combination, Π_m p_m^{1/M} normalised, which weighs all members alike (Clarity spec §2.2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from common.errors import VceError

Combination = Literal["mixture", "mean-log"]


@dataclass(frozen=True)
class Recipe:
    """How an ensemble is trained: M `members` from independent seeds and batch orders, each on all images (no bagging).

    `fgsm`: training batches are joined by their perturbation along the sign of the input gradient, of this size.
    """

    architecture: str
    members: int
    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    fgsm: float = 0.0


def mlp(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """d-256-256-K with ReLU, on latents or, with equal capacity after the input layer, on pixels."""
    return _mlp(math.prod(shape), 256, n_classes)


def schut_mlp(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Two hidden layers of 200 units on pixels (Schut et al. 2021); without their batch normalisation."""
    return _mlp(math.prod(shape), 200, n_classes)


def _mlp(inputs: int, width: int, n_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, n_classes),
    )  # fmt: skip


def pixel_cnn(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Strided convolutions of 16 and 32 channels, then 128 units on all positions."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128), nn.ReLU(), nn.Linear(128, n_classes),
    )  # fmt: skip


def texture_cnn(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """For textures in any place: three convolutions, two of them strided, and the mean over positions."""
    return nn.Sequential(
        *_normed(shape[0], 24, 4, 2), *_normed(24, 48, 3, 2), *_normed(48, 64, 3, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, n_classes),
    )  # fmt: skip


def latent_cnn(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """The same on a latent grid c×h×w that comes flattened."""
    return nn.Sequential(
        nn.Unflatten(1, shape), *_normed(shape[0], 32, 3, 1), *_normed(32, 64, 3, 2), *_normed(64, 64, 3, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, n_classes),
    )  # fmt: skip


def _normed(channels_in: int, channels_out: int, kernel: int, stride: int) -> list[nn.Module]:
    # group normalisation keeps no running statistics, which `vmap` could not update
    return [nn.Conv2d(channels_in, channels_out, kernel, stride, 1), nn.GroupNorm(8, channels_out), nn.ReLU()]


ARCHITECTURES = {
    "mlp": mlp,
    "latent_cnn": latent_cnn,
    "schut_mlp": schut_mlp,
    "pixel_cnn": pixel_cnn,
    "texture_cnn": texture_cnn,
}


class Ensemble(nn.Module):
    """M members of one architecture; maps N×`shape` inputs to N×K log-probabilities of their combination.

    `state` holds each parameter stacked, M×…; `temperature` divides the logits of every member.
    """

    def __init__(
        self,
        architecture: str,
        shape: tuple[int, ...],
        n_classes: int,
        state: dict[str, Tensor],
        temperature: float | Tensor = 1.0,
        combination: Combination = "mixture",
    ):
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise VceError(f"architecture {architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
        self.architecture, self.shape, self.n_classes = architecture, tuple(shape), n_classes
        self.combination = combination
        with torch.device("meta"):
            skeleton = ARCHITECTURES[architecture](shape, n_classes)
        self._call = lambda state, x: functional_call(skeleton, state, (x,))
        for name, value in state.items():
            self.register_buffer(name.replace(".", "_"), value)
        self._names = tuple(state)
        temperature = torch.as_tensor(temperature, dtype=torch.float32).clone()  # a part may be calibrated on its own
        self.register_buffer("temperature", temperature)

    @classmethod
    def create(
        cls, architecture: str, shape: tuple[int, ...], n_classes: int, members: int, seed: int, **settings
    ) -> "Ensemble":
        """M untrained members, initialised one after the other from `seed`."""
        if architecture not in ARCHITECTURES:
            raise VceError(f"architecture {architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            networks = [ARCHITECTURES[architecture](shape, n_classes) for _ in range(members)]
        state, _ = stack_module_state(networks)
        return cls(architecture, shape, n_classes, {k: v.detach() for k, v in state.items()}, **settings)

    def __len__(self) -> int:
        return len(self.state[self._names[0]])

    @property
    def state(self) -> dict[str, Tensor]:
        """Stacked parameters by the names that the architecture gives them."""
        return {name: getattr(self, name.replace(".", "_")) for name in self._names}

    def only(self, members: Sequence[int], **settings) -> "Ensemble":
        """The ensemble of some members, its temperature and combination kept unless `settings` say otherwise."""
        state = {name: value[list(members)] for name, value in self.state.items()}
        kept = {"temperature": self.temperature, "combination": self.combination}
        return Ensemble(self.architecture, self.shape, self.n_classes, state, **{**kept, **settings})

    def logits(self, x: Tensor) -> Tensor:
        """M×N×K logits of the members, before the temperature."""
        if len(self) == 1:  # plain kernels are faster than batched ones
            return self._call({name: value[0] for name, value in self.state.items()}, x)[None]
        return vmap(self._call, in_dims=(0, None))(self.state, x)

    def member_log_probabilities(self, x: Tensor) -> Tensor:
        """M×N×K log-probabilities of the members."""
        return (self.logits(x) / self.temperature).log_softmax(2)

    def forward(self, x: Tensor) -> Tensor:
        return combine(self.member_log_probabilities(x), self.combination)


def combine(log_p: Tensor, combination: Combination) -> Tensor:
    """…×K log-probabilities of an ensemble from M×…×K of its members."""
    if combination == "mixture":
        return log_p.logsumexp(0) - math.log(len(log_p))
    return log_p.mean(0).log_softmax(-1)


def train_ensemble(
    ensemble: Ensemble,
    inputs: Callable[[Tensor, torch.Generator], Tensor],
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    progress: Callable[[dict], None] | None = None,
) -> None:
    """Fit all members at once, in place: cross-entropy, AdamW, one-cycle rate, a batch order for each member.

    `inputs(rows, generator)` gives the inputs of M×B training rows, M×B×…, and may augment them. Raises VceError naming
    the member that stops being finite.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {name: value.clone().requires_grad_() for name, value in ensemble.state.items()}
    decay = {"weight_decay": recipe.weight_decay, "fused": True}
    optimiser = torch.optim.AdamW(list(state.values()), recipe.learning_rate, **decay)
    batches = -(-len(labels) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 2 * recipe.learning_rate, total_steps=recipe.epochs * batches
    )

    def loss_of(member: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(ensemble._call(member, x), y)

    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        if not any(value.ndim == 5 for value in state.values()):
            return vmap(loss_of)(state, x, y)
        # stacked convolutions of different inputs are grouped ones, whose gradient is slower than one after the other
        members = [{name: value[m] for name, value in state.items()} for m in range(len(ensemble))]
        return torch.stack([loss_of(member, *batch) for member, *batch in zip(members, x, y, strict=True)])

    for epoch in range(recipe.epochs):
        total = torch.zeros(len(ensemble))
        order = torch.rand(len(ensemble), len(labels), generator=generator).argsort(1)
        for rows in order.split(recipe.batch_size, 1):
            x, y = inputs(rows, generator), labels[rows]
            if recipe.fgsm:
                detached = {name: value.detach() for name, value in state.items()}
                direction = vmap(grad(loss_of, argnums=1))(detached, x, y).sign()
                x, y = torch.cat([x, (x + recipe.fgsm * direction).clamp(0, 1)], 1), torch.cat([y, y], 1)
            losses = losses_of(x, y)
            optimiser.zero_grad()
            losses.sum().backward()
            optimiser.step()
            schedule.step()
            total += losses.detach() * rows.shape[1]
        finite = total.isfinite() & torch.stack([v.isfinite().flatten(1).all(1) for v in state.values()]).all(0)
        if not finite.all():
            member = int((~finite).int().argmax())
            raise VceError(
                f"member {member} diverged in epoch {epoch + 1}: its loss is not finite; lower `learning_rate`"
            )
        if progress:
            progress({"epoch": epoch + 1, "epochs": recipe.epochs, "loss": (total / len(labels)).mean().item()})
    for name, value in state.items():
        getattr(ensemble, name.replace(".", "_")).copy_(value.detach())


def fit_temperature(ensemble: Ensemble, x: Tensor, labels: Tensor) -> None:
    """Set the one temperature of the system to that of least held-out NLL of its combination, of 400 values of
    log T ∈ [−3, 3]: every twentieth first, then those around the best of them."""
    temperatures = torch.linspace(-3, 3, 400).exp()
    with torch.no_grad():
        logits = ensemble.logits(x)

        def best(tried: Tensor) -> int:
            log_p = combine((logits[:, None] / temperatures[tried, None, None]).log_softmax(3), ensemble.combination)
            return int(tried[log_p[:, torch.arange(len(labels)), labels].mean(1).argmax()])

        coarse = best(torch.arange(0, 400, 20))
        ensemble.temperature.fill_(temperatures[best(torch.arange(max(coarse - 19, 0), min(coarse + 20, 400)))])
