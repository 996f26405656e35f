"""ResNet-18 (He et al. 2016) for 32x32 images: 3x3 stride-1 stem, no max-pool, last map 4x4x512."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class ResNet18(nn.Module):
    """Four stages of two of torchvision's residual blocks; 11.2 million parameters."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        stages = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        self.stages = nn.Sequential(
            *(
                nn.Sequential(*residual_stage(width_in, width, n_blocks=2, stride=stride))
                for width_in, width, stride in stages
            )
        )
        self.head = nn.Linear(512, n_classes)
        initialize(self)

    def features(self, x_NCHW: Tensor) -> Tensor:
        """Last activation map (N, 512, h, w), after the final rectifier; 4x4 for 32x32 images."""
        map_NKhw: Tensor = self.stages(self.stem(x_NCHW))
        return map_NKhw

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, n_classes)."""
        logits_NK: Tensor = self.head(self.features(x_NCHW).mean((2, 3)))
        return logits_NK


def resnet18(n_classes: int) -> nn.Module:
    """A new ResNet-18, its weights drawn from torch's global generator."""
    return ResNet18(n_classes)


def residual_stage(width_in: int, width: int, *, n_blocks: int, stride: int) -> list[BasicBlock]:
    """Residual blocks, the first of which changes width and resolution (with a 1x1 projection where it must)."""
    projection = None
    if stride != 1 or width_in != width:
        projection = nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
    first = BasicBlock(width_in, width, stride, projection)
    return [first, *(BasicBlock(width, width) for _ in range(n_blocks - 1))]


def initialize(network: nn.Module) -> None:
    """Normal initialization by fan-out for convolutions (He et al. 2015); batch-norm starts as the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
