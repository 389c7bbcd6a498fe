"""Borders to other libraries."""

from minunet.interop.torch import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
