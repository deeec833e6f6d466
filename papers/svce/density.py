"""Counterfactuals regularised by a density estimate (SVCE §2.7): the score-based pVCE and the blended-diffusion VCE.

Both are pure functions of an image batch, a score model and log p̂(k | ·); `pvce` and `blended_diffusion` wrap them in
the contract of `common/explain.py`. Which of the two the paper prints, and any number of theirs, is unknown.

A sample whose classifier or network stops being finite keeps its last finite image and is marked `diverged`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.attacks import Callback, column, per_row_radius, unit
from common.errors import VceError
from common.explain import CounterfactualBatch, Objective, Streams, finish, log_confidence
from common.generators.diffusion import TIMESTEPS, ScoreModel

Noise = Callable[[str], Tensor]


@dataclass(frozen=True)
class Langevin:
    """Annealed Langevin dynamics: `levels` noise levels from sigma_1 down to sigma_L, `inner` steps at each.

    Deviations from §2.7, all for the CPU: 20 levels of 4 steps instead of 232 to 1086 of 1 or 5; α = 4e-5 instead of
    6.2e-6, since fewer steps must go further; sigma_1 = .1 instead of 1 or 50, since the ball projects away noise far
    beyond its radius. sigma_L = .01 and `guidance` = 1/5, the length of the classifier's gradient over the score's, are
    theirs; their text can also be read as 1/5 of the network's output before its division by σ.
    """

    levels: int = 20
    inner: int = 4
    alpha: float = 4e-5
    sigma_1: float = 0.1
    sigma_L: float = 0.01
    guidance: float = 0.2

    def __post_init__(self):
        if not (self.levels >= 2 and self.inner >= 1 and self.alpha > 0 and self.sigma_1 >= self.sigma_L > 0):
            raise VceError(f"{self}: needs levels ≥ 2, inner ≥ 1, alpha > 0 and sigma_1 ≥ sigma_L > 0")


@dataclass(frozen=True)
class Blending:
    """Guided diffusion: `steps` respaced steps of which the first `skip` are left out; weights of MSE and range.

    Deviation from §2.7, for the CPU: 24 steps of which 6 are skipped instead of 100 and 25. The weights are theirs, and
    so a pixel is pulled harder than at 256 px: the MSE is a mean over 64 times fewer colour values. Steps are explicit:
    far larger lambda_mse, or far fewer steps, and the image oscillates instead of staying.
    """

    steps: int = 24
    skip: int = 6
    lambda_mse: float = 10000.0
    lambda_range: float = 50.0

    def __post_init__(self):
        if not 0 <= self.skip < self.steps <= TIMESTEPS:
            raise VceError(f"{self}: needs 0 ≤ skip < steps ≤ {TIMESTEPS}")


def annealed_langevin(
    x0: Tensor,
    epsilon: float | Tensor,
    value_and_grad: Objective,
    score: Callable[[Tensor, float], Tensor],
    noise: Noise,
    setting: Langevin,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Annealed Langevin dynamics inside the l2 ball of radius ε around x0 and the box (pVCE, §2.7).

    With α_j = α(σ_j/σ_L)²:  x ← x + √(2α_j)·z, then  x ← P(x + α_j(s + (‖s‖/(5‖∇log p̂‖))·∇log p̂(k | x̃))).

    x0 is N×C×H×W in [0, 1], `epsilon` a radius or N radii, `value_and_grad` log p̂ as in `common/attacks.py`,
    `score(x, σ)` is s = ∇log p_σ, `noise(name)` a normal draw of x0's shape. x̃ = P(x + σ²s) is the denoised image; the
    gradient of log p̂ is taken at it, not through it. P scales to the ball, then clamps, as in `apgd_l2`.

    Returns the denoised, projected last iterate (the chain itself still carries noise of about σ_L, which is no part
    of the explanation), who diverged (N bool), and gradient evaluations (N). `callback` sees `i`, `L`, the iterate `x`,
    `denoised` and `rows`. Cost: levels·inner passes of the classifier, one more forward pass of the score model.
    """
    eps, rows = per_row_radius(epsilon, x0), torch.arange(len(x0), device=x0.device)
    alive, steps = torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows)

    def P(x: Tensor) -> Tensor:
        delta = x - x0
        norm = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return delta.mul_(column((eps / norm).clamp_max_(1), x)).add_(x0).clamp_(0, 1)

    x = shown = x0
    sigmas = torch.logspace(0, 1, setting.levels, base=setting.sigma_L / setting.sigma_1).mul(setting.sigma_1).tolist()
    for j, sigma in enumerate(sigmas):
        alpha = setting.alpha * (sigma / setting.sigma_L) ** 2
        for i in range(setting.inner):
            y = x + (2 * alpha) ** 0.5 * noise(f"{j}/{i}")
            s = score(y, sigma)
            denoised = P(y + sigma**2 * s)
            L, g = value_and_grad(denoised, rows)
            steps += alive
            weight = setting.guidance * torch.linalg.vector_norm(s.flatten(1), dim=1)
            y = P(y + alpha * (s + column(weight, s) * unit(g)))
            alive = alive & L.isfinite() & y.flatten(1).isfinite().all(1)
            x, shown = _where(alive, y, x), _where(alive, denoised, shown)
            if callback is not None:
                callback({"i": j * setting.inner + i, "L": L, "x": x, "denoised": shown, "rows": rows})
    denoised = P(x + setting.sigma_L**2 * score(x, setting.sigma_L))
    alive = alive & denoised.flatten(1).isfinite().all(1)
    return _where(alive, denoised, shown), ~alive, steps


def guided_diffusion(
    x0: Tensor,
    lambda_c: float | Tensor,
    value_and_grad: Objective,
    model: ScoreModel,
    noise: Noise,
    setting: Blending,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reverse diffusion from the noised x0, guided by classifier and distance, without a mask (BDVCE, §2.7).

    x0 is N×C×H×W in [0, 1], `lambda_c` one weight or N; the other arguments as in `annealed_langevin`. The loss of a
    sample, in y = 2x − 1:

        −λ_c·log p̂(k | x_in) + λ_mse·MSE(x_in, y0) + λ_range·range(ŷ),   x_in = √(1−ᾱ)·ŷ + (1−√(1−ᾱ))·y_t

    with ŷ the denoised image; the mean of each ancestral step moves by −variance·∇loss, through the network. The MSE is
    of a sample, not of the batch as in the release (trap 17). Deviation: no LPIPS term, its VGG weights are not here.

    Returns the last image, clamped to [0, 1], who diverged, and gradient evaluations. `callback` sees `i`, `L`, `y`
    and `rows`. Cost: steps − skip forward and backward passes of both classifier and network.
    """
    weight, rows = torch.as_tensor(lambda_c, dtype=x0.dtype).expand(len(x0)), torch.arange(len(x0))
    alive, steps = torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows)
    times = torch.linspace(0, TIMESTEPS - 1, setting.steps).round()[: setting.steps - setting.skip]
    alpha_bars = model.alpha_bar(times)
    y0 = 2 * x0 - 1
    y = alpha_bars[-1].sqrt() * y0 + (1 - alpha_bars[-1]).sqrt() * noise("start")
    shown = x0
    for k in reversed(range(len(times))):
        t, alpha_bar = times[k].expand(len(x0)), alpha_bars[k]
        previous = alpha_bars[k - 1] if k else torch.ones(())
        beta = 1 - alpha_bar / previous
        variance = beta * (1 - previous) / (1 - alpha_bar)
        blend = (1 - alpha_bar).sqrt()
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            clean = model.predict_original(y, t)
            x_in = blend * clean + (1 - blend) * y
            out = clean - clean.clamp(-1, 1)
            distance = setting.lambda_mse * (x_in - y0).square().flatten(1).mean(1)
            loss = distance + setting.lambda_range * out.square().flatten(1).mean(1)
        L, g = value_and_grad((x_in.detach() + 1) / 2, rows)
        steps += alive
        # ∇x_in of −λ_c·log p̂ is known: pull it back together with the rest
        (gradient,) = torch.autograd.grad([loss.sum(), x_in], y, [torch.ones(()), column(-weight, g) * g / 2])
        mean = previous.sqrt() * beta / (1 - alpha_bar) * clean.detach()
        mean += (1 - beta).sqrt() * (1 - previous) / (1 - alpha_bar) * y.detach()
        new = mean - variance * gradient + variance.sqrt() * noise(f"{k}")
        alive = alive & L.isfinite() & new.flatten(1).isfinite().all(1)
        y, shown = _where(alive, new, y.detach()), _where(alive, ((clean.detach() + 1) / 2).clamp(0, 1), shown)
        if callback is not None:
            callback({"i": len(times) - 1 - k, "L": L, "y": y, "rows": rows})
    return _where(alive, ((y + 1) / 2).clamp(0, 1), shown), ~alive, steps


def _where(who: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(column(who, new), new, old)


def pvce(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float],
    score_model: ScoreModel,
    callback: Callback | None = None,
    setting: Langevin | None = None,
    batch_size: int = 64,
) -> CounterfactualBatch:
    """The score-based l2-pVCE (`annealed_langevin`) at the radii `strengths`. Raises VceError for a radius ≤ 0."""
    setting = setting or Langevin()

    def solve(x0, epsilon, value_and_grad, noise):
        with torch.no_grad():
            return annealed_langevin(x0, epsilon, value_and_grad, score_model.score, noise, setting, callback)

    return _explain(solve, images, target, classifier, rng, strengths, "pvce", batch_size)


def blended_diffusion(
    images: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float] = (25.0,),
    score_model: ScoreModel,
    callback: Callback | None = None,
    setting: Blending | None = None,
    batch_size: int = 64,
) -> CounterfactualBatch:
    """The mask-free blended-diffusion VCE (`guided_diffusion`) at the classifier weights λ_c `strengths`."""
    setting = setting or Blending()

    def solve(x0, lambda_c, value_and_grad, noise):
        return guided_diffusion(x0, lambda_c, value_and_grad, score_model, noise, setting, callback)

    return _explain(solve, images, target, classifier, rng, strengths, "blended", batch_size)


def _explain(
    solve: Callable[[Tensor, Tensor, Objective, Noise], tuple[Tensor, Tensor, Tensor]],
    images: Tensor,
    target: Tensor,
    classifier: nn.Module,
    rng: Streams,
    strengths: Sequence[float],
    purpose: str,
    batch_size: int,
) -> CounterfactualBatch:
    """All N·S (image, strength) problems, an image's together: they share its noise."""
    n, s = len(images), len(strengths)
    found = []
    for rows in torch.arange(n).split(max(batch_size // s, 1)):
        sample, streams = rows.repeat_interleave(s), rng[rows.tolist()]

        def noise(name: str, streams=streams) -> Tensor:
            return streams.normal(images.shape[1:], f"{purpose}/{name}").repeat_interleave(s, 0)

        strength = torch.tensor([float(value) for value in strengths]).repeat(len(rows))
        found.append(solve(images[sample], strength, log_confidence(classifier, target[sample]), noise))
    final, diverged, steps = (torch.cat(parts) for parts in zip(*found, strict=True))
    return finish(
        images,
        final.view(n, s, *images.shape[1:]),
        target,
        classifier=classifier,
        strengths=strengths,
        diverged=diverged.view(n, s),
        steps=steps.view(n, s),
        passes=(steps.view(n, s), steps.view(n, s)),
        batch_size=batch_size,
    )
