"""Layers: modules with parameters, each a thin shell around one function of `minunet.functional`."""

from minunet.nn.layers import (
    ELU,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    LeakyReLU,
    Linear,
    ReLU,
    Sigmoid,
    Softmax,
    conv_norm_relu,
)
from minunet.nn.module import Kept, LayerCall, Module, Parameter, Placeholder, Sequential, record_layers
from minunet.nn.replayed import Replayed, recorded_bytes, release_recordings
from minunet.nn.spatial import AvgPool2d, CenterCrop, Concat, Crop, Flatten, MaxPool2d, MaxUnpool2d, Pad, Resample

__all__ = [
    "AvgPool2d", "BatchNorm2d", "CenterCrop", "Concat", "Conv2d", "ConvTranspose2d", "Crop", "Dropout", "ELU",
    "Flatten", "Kept", "LayerCall", "LeakyReLU", "Linear", "MaxPool2d", "MaxUnpool2d", "Module", "Pad", "Parameter",
    "Placeholder", "ReLU", "Replayed", "Resample", "Sequential", "Sigmoid", "Softmax", "conv_norm_relu",
    "record_layers", "recorded_bytes", "release_recordings",
]
