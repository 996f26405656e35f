"""MobileNet-V2 (Sandler et al. 2018) for 32x32 images: stride-1 stem, last map 4x4x1280.

With torchvision's strides and only the stem changed the last map would be 2x2, four cells for a saliency map: the
160-channel stage keeps the resolution too.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

#: Expansion factor, channels, blocks, stride of the first block (table 2 of the paper; strides for 32x32 pixels).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 1), (6, 320, 1, 1))


class MobileNetV2(nn.Module):
    """torchvision's inverted residual blocks with ReLU6; 2.35 million parameters for 100 classes.

    No dropout before the head: the CIFAR-100 recipe has none, and the head stays linear in the mean map.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        width_in = 32
        layers: list[nn.Module] = [
            Conv2dNormActivation(3, width_in, kernel_size=3, stride=1, activation_layer=nn.ReLU6)
        ]
        for expansion, width, n_blocks, first_stride in STAGES:
            for i in range(n_blocks):
                stride = first_stride if i == 0 else 1
                layers.append(InvertedResidual(width_in, width, stride, expand_ratio=expansion))
                width_in = width
        layers.append(Conv2dNormActivation(width_in, 1280, kernel_size=1, activation_layer=nn.ReLU6))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(1280, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, x_NCHW: Tensor) -> Tensor:
        """Last activation map (N, 1280, h, w), after the final ReLU6; 4x4 for 32x32 images."""
        map_NKhw: Tensor = self.layers(x_NCHW)
        return map_NKhw

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, n_classes)."""
        logits_NK: Tensor = self.head(self.features(x_NCHW).mean((2, 3)))
        return logits_NK


def mobilenet_v2(n_classes: int) -> nn.Module:
    """A new MobileNet-V2, its weights drawn from torch's global generator."""
    return MobileNetV2(n_classes)
