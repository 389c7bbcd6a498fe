"""`Conv`, the shape of a convolution as kernels take it: the struct of kernels/conv.cuh."""

from __future__ import annotations

from typing import NamedTuple

from minunet.geometry import Geometry, Pair


class Conv(NamedTuple):
    """x (images, height, width, channels), y (images, out_height, out_width, filters), and the windows' geometry."""

    images: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    filters: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int

    @classmethod
    def of(cls, geometry: Geometry, images: int, size: Pair, channels: int, filters: int) -> Conv:
        """For this many images of a size (height, width) in px."""
        return cls(images, *size, channels, *geometry.output_size(size), filters, *geometry.kernel, *geometry.stride,
                   *geometry.padding, *geometry.dilation)
