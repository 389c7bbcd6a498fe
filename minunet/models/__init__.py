"""Whole nets."""

from minunet.models.unet import DoubleConv, Down, UNet, Up

__all__ = ["DoubleConv", "Down", "UNet", "Up"]
