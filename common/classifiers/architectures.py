"""Small convolutional networks for 28–64 px images. Each builder takes (in_channels, n_classes)."""

from collections.abc import Callable

from torch import Tensor, nn


def _block(channels_in: int, channels_out: int, kernel: int, stride: int, activation: Callable[[], nn.Module]) -> list:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), activation()]


def _head(channels: int, n_classes: int) -> list:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes)]


def strided_cnn(in_channels: int, n_classes: int) -> nn.Sequential:
    """The explained classifier: 4×4 strided stem, three SiLU convolutions, global average pooling (52 k parameters)."""
    return nn.Sequential(
        *_block(in_channels, 24, 4, 2, nn.SiLU),
        *_block(24, 48, 3, 2, nn.SiLU),
        *_block(48, 64, 3, 1, nn.SiLU),
        *_head(64, n_classes),
    )


def plain_cnn(in_channels: int, n_classes: int) -> nn.Sequential:
    """The first oracle: 3×3 stem at full resolution, ReLU, average pooling between stages."""
    return nn.Sequential(
        *_block(in_channels, 16, 3, 1, nn.ReLU),
        nn.AvgPool2d(2),
        *_block(16, 32, 3, 1, nn.ReLU),
        nn.AvgPool2d(2),
        *_block(32, 64, 3, 1, nn.ReLU),
        *_head(64, n_classes),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            *_block(channels, channels, 3, 1, nn.GELU), *_block(channels, channels, 3, 1, nn.Identity)
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x + self.body(x))


def residual_cnn(in_channels: int, n_classes: int) -> nn.Sequential:
    """The adversarially trained oracle: strided stem and two GELU residual blocks."""
    return nn.Sequential(
        *_block(in_channels, 32, 3, 2, nn.GELU),
        *_block(32, 48, 3, 2, nn.GELU),
        _Residual(48),
        *_head(48, n_classes),
    )


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "strided_cnn": strided_cnn,
    "plain_cnn": plain_cnn,
    "residual_cnn": residual_cnn,
}
