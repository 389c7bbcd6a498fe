"""Array-level pairs, without a graph: y, cache = f(x, ...) and dx, ... = f_backward(dy, cache), side by side.

A backward returns one gradient for each array input, in their order. One that can save work takes `needs`, a bool for
each input, and may return None where it is False.
"""
