"""L2CS-Net (Abdelrahman et al. 2022): a ResNet (He et al. 2016) with two heads, one for each angle of gaze.

Names of tensors are those of the authors' code, https://github.com/Ahmednull/L2CS-Net (MIT), so their weights fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

BINS = 90
BIN_DEGREES = 4.0
FIRST_BIN = -180.0
"""Bin i stands for the angle ``FIRST_BIN + BIN_DEGREES · i``."""


class L2CS(nn.Module):
    """The network.

    Args:
        bottleneck: Whether its blocks are bottlenecks, as in ResNet-50 and larger.
        blocks: How many each of the four stages has.
        width: Channels of the first stage: 64 in torchvision's and in the published ones. Each later stage has twice
            as many as the one before.
    """

    def __init__(self, bottleneck: bool, blocks: Sequence[int], width: int) -> None:
        super().__init__()
        block = Bottleneck if bottleneck else BasicBlock
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        inside = width
        for stage, count in enumerate(blocks):
            planes = width << stage
            setattr(self, f"layer{stage + 1}", _stage(block, inside, planes, count, stride=1 if stage == 0 else 2))
            inside = planes * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc_yaw_gaze = nn.Linear(inside, BINS)
        self.fc_pitch_gaze = nn.Linear(inside, BINS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the bins of yaw and of pitch, both (n, 90), of normalised faces (n, 3, side, side)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(pixels))))
        for stage in range(1, 5):
            features = getattr(self, f"layer{stage}")(features)
        features = self.avgpool(features).flatten(1)
        return self.fc_yaw_gaze(features), self.fc_pitch_gaze(features)


def angles(logits: torch.Tensor) -> torch.Tensor:
    """Degrees, float32 (n,): the mean of the bins, each weighted with its probability."""
    bins = torch.arange(BINS, dtype=torch.float32, device=logits.device)
    # Not a matrix product: automatic mixed precision would compute that in half precision.
    mean = (logits.float().softmax(dim=1) * bins).sum(dim=1)
    return mean * BIN_DEGREES + FIRST_BIN


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inside: int, planes: int, count: int, stride: int
) -> nn.Sequential:
    """Blocks of one stage; the first halves the picture's side if `stride` is 2."""
    outside = planes * block.expansion
    shortcut = None
    if stride != 1 or inside != outside:
        shortcut = nn.Sequential(
            nn.Conv2d(inside, outside, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outside)
        )
    return nn.Sequential(block(inside, planes, stride, shortcut), *(block(outside, planes) for _ in range(count - 1)))
