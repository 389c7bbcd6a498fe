"""minunet: a U-Net for semantic segmentation, written from scratch on one linear operator, the convolution matrix."""

from minunet import functional, nn, optim
from minunet.autograd import Tensor, no_grad
from minunet.convolution import ConvMatrix
from minunet.geometry import Geometry
from minunet.gradient_check import gradcheck
from minunet.models import UNet

__all__ = ["ConvMatrix", "Geometry", "Tensor", "UNet", "functional", "gradcheck", "nn", "no_grad", "optim"]
__version__ = "0.1.0"
