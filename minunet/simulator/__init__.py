"""The simulated GPU: runs CUDA C++ kernels, unchanged, on the CPU, and finds what they do wrong.

Its headers are written to be read, in this order: machine.h (what a kernel sees), fiber.h and scheduler.h (how its
threads run), warp.h and tensor_cores.h (what a warp does together), check.h (races, bounds, uninitialised reads).
tracing.py puts the accesses of a warp side by side.
"""

from minunet.simulator.build import SimulatorError, require_compiler
from minunet.simulator.machine import MAX_SHARED, checking, launch, trace
from minunet.simulator.tracing import Access, Step, Trace

__all__ = ["MAX_SHARED", "Access", "SimulatorError", "Step", "Trace", "checking", "launch", "require_compiler", "trace"]
