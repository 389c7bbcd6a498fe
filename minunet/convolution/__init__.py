"""The convolution matrix and its three products."""

from minunet.convolution.matrix import ConvMatrix

__all__ = ["ConvMatrix"]
