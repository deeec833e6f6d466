"""Small convolutional networks for 28–64 px images. Each builder takes (in_channels, n_classes)."""

from collections.abc import Callable

from torch import Tensor, nn


def _block(channels_in: int, channels_out: int, kernel: int, stride: int, activation: Callable[[], nn.Module]) -> list:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), activation()]


def _head(channels: int, n_classes: int, grid: int = 1) -> list:
    return [nn.AdaptiveAvgPool2d(grid), nn.Flatten(), nn.Linear(channels * grid * grid, n_classes)]


def strided_cnn(in_channels: int, n_classes: int) -> nn.Sequential:
    """The explained classifier: 4×4 strided stem, three SiLU convolutions, global average pooling (52 k parameters)."""
    return nn.Sequential(
        *_block(in_channels, 24, 4, 2, nn.SiLU),
        *_block(24, 48, 3, 2, nn.SiLU),
        *_block(48, 64, 3, 1, nn.SiLU),
        *_head(64, n_classes),
    )


def digit_cnn(in_channels: int, n_classes: int) -> nn.Sequential:
    """The explained classifier of digits, which differ in place and not in texture: two strided SiLU convolutions, then
    128 units on all 7×7 positions of a 28×28 image (210 k parameters)."""
    return nn.Sequential(
        *_block(in_channels, 16, 4, 2, nn.SiLU),
        *_block(16, 32, 3, 2, nn.SiLU),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.SiLU(),
        nn.Linear(128, n_classes),
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


def grid_cnn(in_channels: int, n_classes: int) -> nn.Sequential:
    """The first oracle of digits: as `plain_cnn`, narrower, with a head that keeps a 5×5 grid of places."""
    return nn.Sequential(
        *_block(in_channels, 12, 3, 1, nn.ReLU),
        nn.AvgPool2d(2),
        *_block(12, 24, 3, 1, nn.ReLU),
        nn.AvgPool2d(2),
        *_block(24, 32, 3, 1, nn.ReLU),
        *_head(32, n_classes, grid=5),
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


class LeNet5(nn.Module):
    """Two 3×3 convolutions (32, 64) with max-pooling, then 200 hidden units on 7×7 positions: the layout of packaged
    MNIST weights."""

    def __init__(self, in_channels: int, n_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.linear1 = nn.Linear(64 * 7 * 7, 200)
        self.linear2 = nn.Linear(200, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.max_pool2d(self.conv1(images).relu(), 2)
        hidden = nn.functional.max_pool2d(self.conv2(hidden).relu(), 2)
        hidden = nn.functional.adaptive_avg_pool2d(hidden, 7)  # as it is for 28×28
        return self.linear2(self.linear1(hidden.flatten(1)).relu())


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "strided_cnn": strided_cnn,
    "digit_cnn": digit_cnn,
    "plain_cnn": plain_cnn,
    "grid_cnn": grid_cnn,
    "residual_cnn": residual_cnn,
    "lenet5": LeNet5,
}
