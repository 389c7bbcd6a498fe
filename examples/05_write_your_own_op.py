"""A new op, from formula to layer: a pair of array functions, lifted and checked; and how a wrong backward is found.

    python examples/05_write_your_own_op.py

The op is PReLU, a ReLU whose slope on the negative side is learned, one for each channel. It prints:

    Right: 129 comparisons with finite differences, the worst error is below 1e-8.
    Wrong: gradcheck: the gradient of input 0 (2, 4, 5, 3) is wrong. At index (1, 2, 2, 1) it is 0 (analytic), ...
    There x is -0.59: dx stops where it should be multiplied with the slope, 0.27.
    Wrong: gradcheck: the gradient of input 1 (3,) is wrong. At index (1,) it is -0.12...
    The finite difference is 40.0 times as large, and there are 40 pixels: a mean stands where a sum belongs.
    The loss falls from 1.47 to 0.0000, the slope goes from 0.25 to -1.00.

Source: He, Zhang, Ren, Sun, Delving deep into rectifiers (2015), section 2.1.
"""

import numpy as np

from minunet import Tensor, gradcheck, nn, optim
from minunet.autograd import lift
from minunet.gradient_check import GradientError


# 1. The pair. Forward returns the result and a cache: what backward will need. Arrays in, arrays out, no Tensors.
def prelu(x, slope):
    """x where x > 0, slope · x elsewhere: x (..., C), slope (C,) -> (..., C)."""
    return np.where(x > 0, x, slope * x), (x, slope)


def prelu_backward(dy, cache):
    """dx = dy · (1 or slope).  Each number of slope is used at every pixel of its channel, so the pixels' parts add up:
    dslope = Σ dy · x over the pixels with x <= 0."""
    x, slope = cache
    dx = np.where(x > 0, dy, slope * dy)
    dslope = np.where(x > 0, 0, dy * x).reshape(-1, slope.size).sum(0)
    return dx, dslope


# 2. Lifted, the pair is a function of Tensors, like those of minunet.functional. `kink` tells gradcheck where the slope
#    jumps: a finite difference across a jump agrees with neither side.
op = lift(prelu, prelu_backward, kink=lambda cache: cache[0] > 0)

# 3. The check. Random numbers, in float64, of a shape in which no two axes are equal, so that exchanged ones come out.
rng = np.random.default_rng(0)
x, slope = rng.standard_normal((2, 4, 5, 3)), rng.uniform(0.1, 0.4, 3)
report = gradcheck(op, [x, slope], elementwise=True)
assert report.worst_error < 1e-8
print(f"Right: {report.comparisons} comparisons with finite differences, the worst error is below 1e-8.")


# 4. Two mistakes, as they are made. A net learns with either of them, only worse, so nobody would notice. gradcheck
#    names the input and the element; its two numbers there are the clue.
def stops_negative(dy, cache):
    """dx as of a plain ReLU."""
    return np.where(cache[0] > 0, dy, 0 * dy), prelu_backward(dy, cache)[1]


def averages(dy, cache):
    """The parts of dslope averaged where they have to be added up."""
    dx, dslope = prelu_backward(dy, cache)
    return dx, dslope / dy[..., 0].size


def fault_of(wrong):
    """What gradcheck raises for the op with this backward."""
    try:
        gradcheck(lift(prelu, wrong, kink=lambda cache: cache[0] > 0), [x, slope], elementwise=True)
    except GradientError as error:
        print("Wrong:", error)
        return error


fault = fault_of(stops_negative)
print(f"There x is {x[fault.index]:.2f}: dx stops where it should be multiplied with the slope, "
      f"{slope[fault.index[-1]]:.2f}.")
fault = fault_of(averages)
print(f"The finite difference is {fault.numeric / fault.analytic:.1f} times as large, and there are "
      f"{x[..., 0].size} pixels: a mean stands where a sum belongs.")


# 5. A layer is a thin shell around the function; it holds the parameters.
class PReLU(nn.Module):
    """x or slope · x, with a learned slope for each channel: (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, channels):
        self.slope = nn.Parameter(np.full(channels, 0.25, np.float32))

    def forward(self, x):
        return op(x, self.slope)


# 6. And it learns. A net of one 1x1 convolution and this layer shall give |x|: then its slope has to become -1.
images = rng.standard_normal((8, 8, 8, 1)).astype(np.float32)
net = nn.Sequential(nn.Conv2d(1, 1, 1, rng=rng), PReLU(1))
optimizer = optim.Adam(net.parameters(), lr=0.05)
losses = []
for step in range(400):
    error = net(Tensor(images)) - np.abs(images)
    loss = (error * error).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
slope = net[1].slope.data[0]
print(f"The loss falls from {losses[0]:.2f} to {losses[-1]:.4f}, the slope goes from 0.25 to {slope:.2f}.")
