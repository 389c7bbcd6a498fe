"""The same U-Net in PyTorch, with the same names, so that weights go across by `minunet.interop`."""

import torch
import torch.nn.functional as F
from torch import nn


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with batch norm (if any) and ReLU."""

    def __init__(self, channels_in, channels_out, padding, norm):
        super().__init__()
        for i, c in ((1, channels_in), (2, channels_out)):
            setattr(self, f"conv{i}", nn.Conv2d(c, channels_out, 3, padding=int(padding == "same"), bias=norm is None))
            setattr(self, f"norm{i}", nn.BatchNorm2d(channels_out) if norm else nn.Identity())

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class Level(nn.Module):
    """One step down, or with an up-convolution one step up."""

    def __init__(self, channels_in, channels_out, padding, norm, up=False):
        super().__init__()
        if up:
            self.up = nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
        self.convs = DoubleConv(channels_in, channels_out, padding, norm)


class UNet(nn.Module):
    """Images (N, C, H, W) -> logits (N, K, OH, OW); sizes that are multiples of 2^depth, or fit valid convolutions."""

    def __init__(self, in_channels, classes, base, depth, padding="same", norm="batch"):
        super().__init__()
        widths = [base * 2**level for level in range(depth + 1)]
        self.first = DoubleConv(in_channels, base, padding, norm)
        self.down = nn.ModuleList(Level(c, 2 * c, padding, norm) for c in widths[:-1])
        self.up = nn.ModuleList(Level(c, c // 2, padding, norm, up=True) for c in widths[:0:-1])
        self.head = nn.Conv2d(base, classes, 1)

    def forward(self, x):
        skips = []
        x = self.first(x)
        for level in self.down:
            skips.append(x)
            x = level.convs(F.max_pool2d(x, 2))
        for level in self.up:
            x, skip = level.up(x), skips.pop()
            top, left = ((s - n) // 2 for s, n in zip(skip.shape[2:], x.shape[2:]))
            skip = skip[:, :, top:top + x.shape[2], left:left + x.shape[3]]
            x = level.convs(torch.cat([skip, x], 1))
        return self.head(x)
