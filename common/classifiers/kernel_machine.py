"""An RBF support vector machine as a network of buffers: the oracle that shares nothing with a CNN.

On colour images it sees texture, not place: log power spectra of overlapping windows, maximum over windows. On grey
images, digits, it sees the pixels, blurred and at half the resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 12
STRIDE = 4


def features(images: Tensor) -> Tensor:
    """N×D features of N×C×H×W images."""
    if images.shape[1] == 1:
        return F.avg_pool2d(F.avg_pool2d(F.pad(images, (1, 1, 1, 1)), 3, 1), 2).flatten(1)
    grey = images.mean(1) - images.mean((1, 2, 3))[:, None, None]
    windows = grey.unfold(1, WINDOW, STRIDE).unfold(2, WINDOW, STRIDE)
    hann = torch.hann_window(WINDOW + 2, periodic=False)[1:-1]
    power = torch.fft.rfft2(windows * hann[:, None] * hann).abs().square().flatten(3)
    return (power.amax((1, 2)) + 1e-3).log()


class KernelMachine(nn.Module):
    """One-against-rest RBF SVM; `forward` maps N×C×H×W images to N×K decision values."""

    def __init__(self, support: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, gamma: Tensor):
        super().__init__()
        self.register_buffer("support", support)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("gamma", gamma)

    @classmethod
    def empty(cls, in_channels: int, n_classes: int) -> "KernelMachine":
        """A machine without support vectors, to be filled by `resize_like` and `load_state_dict`."""
        shapes = ((0, 0), (0, n_classes), (n_classes,), (0,), (0,), ())
        return cls(*(torch.zeros(shape) for shape in shapes))

    @classmethod
    def fit(cls, images: Tensor, labels: Tensor, n_classes: int, cost: float = 10.0) -> "KernelMachine":
        """Fit on N×C×H×W images and N labels; γ = 1/D on standardised features, pixels by one common scale."""
        from sklearn.svm import SVC

        raw = features(images)
        mean, scale = raw.mean(0), raw.std(0).clamp_min(0.05)
        if images.shape[1] == 1:
            scale = raw.std().expand_as(mean).contiguous()
        x = ((raw - mean) / scale).numpy()
        gamma = 1 / x.shape[1]
        weight, bias = torch.zeros(len(x), n_classes), torch.zeros(n_classes)
        for k in range(n_classes):
            machine = SVC(C=cost, gamma=gamma).fit(x, (labels == k).numpy())
            weight[machine.support_, k] = torch.from_numpy(machine.dual_coef_[0]).float()
            bias[k] = machine.intercept_[0]
        return cls(torch.from_numpy(x), weight, bias, mean, scale, torch.tensor(gamma))

    def resize_like(self, state: dict[str, Tensor], prefix: str = "network.") -> None:
        """Give every buffer the shape it has in `state`."""
        for name, value in self.named_buffers():
            setattr(self, name, value.new_zeros(state[prefix + name].shape))

    def forward(self, images: Tensor) -> Tensor:
        x = (features(images) - self.mean) / self.scale
        return torch.exp(-self.gamma * torch.cdist(x, self.support).square()) @ self.weight + self.bias
