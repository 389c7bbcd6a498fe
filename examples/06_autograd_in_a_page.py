"""Autograd in a page: what `minunet.autograd` does, small enough to be read in one go.

    python examples/06_autograd_in_a_page.py

An autograd keeps, for each result, what it was computed from and how a gradient goes back there. It prints:

    f = (ab + a)² at a = 2, b = 3 is 64; df/da = 64, by hand 2(ab + a)(b + 1) = 64; df/db = 32, by hand 2(ab + a)a = 32
    Convolution, ReLU, transposed convolution, here and in minunet: the same loss True and the same gradients True
    300 steps down the gradient: the loss falls from 83.5 to 2.1.

minunet adds broadcasting, a walk without recursion, memory that is freed while gradients pass, and errors that explain.
"""

import numpy as np

from minunet import ConvMatrix, Geometry, Tensor
from minunet import functional as F


class Value:
    """An array, the values that it was computed from, and a function that takes its gradient to theirs."""

    def __init__(self, data, parents=(), backward=None):
        self.data, self.parents, self.pass_on = np.asarray(data, float), parents, backward
        self.grad = np.zeros_like(self.data)

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), lambda dy: (dy, dy))

    def __sub__(self, other):
        return Value(self.data - other.data, (self, other), lambda dy: (dy, -dy))

    def __mul__(self, other):
        return Value(self.data * other.data, (self, other), lambda dy: (dy * other.data, dy * self.data))

    def relu(self):
        return Value(np.maximum(self.data, 0), (self,), lambda dy: (dy * (self.data > 0),))

    def sum(self):
        return Value(self.data.sum(), (self,), lambda dy: (dy * np.ones_like(self.data),))

    def backward(self):
        """Every value after all that were computed from it: then its gradient is complete when it is passed on."""
        order, seen = [], set()

        def visit(value):
            if value not in seen:
                seen.add(value)
                for parent in value.parents:
                    visit(parent)
                order.append(value)

        visit(self)
        self.grad = np.ones_like(self.data)
        for value in reversed(order):
            if value.parents:
                for parent, gradient in zip(value.parents, value.pass_on(value.grad)):
                    parent.grad = parent.grad + gradient        # of all the ways to the result


def conv(x, w, geometry):
    """y = A x; its gradients are the two other products."""
    A = ConvMatrix(w.data, geometry, x.data.shape[1:3])
    return Value(A @ x.data, (x, w), lambda dy: (A.T @ dy, A.weight_grad(x.data, dy)))


def conv_transpose(y, w, geometry):
    """x = Aᵀ y: the same three products, with x and y exchanged."""
    A = ConvMatrix(w.data, geometry, geometry.transposed_size(y.data.shape[1:3]))
    return Value(A.T @ y.data, (y, w), lambda dx: (A @ dx, A.weight_grad(dx, y.data)))


# Here the page ends; what follows uses it.


# 1. A value that is used twice gets the gradients of both uses: that is the sum in backward. Here a and ab + a are.
a, b = Value(2), Value(3)
c = a * b + a
f = c * c
f.backward()
print(f"f = (ab + a)² at a = 2, b = 3 is {f.data:g}; df/da = {a.grad:g}, by hand 2(ab + a)(b + 1) = {2 * 8 * 4}; "
      f"df/db = {b.grad:g}, by hand 2(ab + a)a = {2 * 8 * 2}")

# 2. A small net: 9x9 pixels to 4x4 windows of 6 filters, ReLU, and back to 9x9; its loss is the squared error to the
#    image itself. Once with the page above, once with minunet.
geometry, rng = Geometry(kernel=3, stride=2), np.random.default_rng(0)
image = rng.standard_normal((1, 9, 9, 1))                               # (N, H, W, C)
weights = [0.3 * rng.standard_normal((3, 3, 1, 6)) for _ in range(2)]   # (KH, KW, C, F)


def loss_here(x, w1, w2):
    error = conv_transpose(conv(x, w1, geometry).relu(), w2, geometry) - x
    return (error * error).sum()


def loss_in_minunet(x, w1, w2):
    error = F.conv_transpose2d(F.relu(F.conv2d(x, w1, stride=2)), w2, stride=2) - x
    return (error * error).sum()


here = [Value(array) for array in (image, *weights)]
there = [Tensor(array, requires_grad=True) for array in (image, *weights)]
losses = loss_here(*here), loss_in_minunet(*there)
for loss in losses:
    loss.backward()
print("Convolution, ReLU, transposed convolution, here and in minunet: the same loss",
      np.isclose(losses[0].data, losses[1].item()), "and the same gradients",
      all(np.allclose(v.grad, t.grad, rtol=1e-12) for v, t in zip(here, there)))

# 3. And it learns.
x, w1, w2 = here
first = losses[0].data
for step in range(300):
    for w in (w1, w2):
        w.data, w.grad = w.data - 0.005 * w.grad, np.zeros_like(w.data)
    loss = loss_here(x, w1, w2)
    loss.backward()
print(f"300 steps down the gradient: the loss falls from {first:.1f} to {loss.data:.1f}.")
