// What all kernels share: the number type, and who "I" am.
//
// `real` is float or double: the door (minunet/cuda.py) compiles every file for either with -Dreal=..., so that
// gradients can be checked in double. A kernel of one thread an element begins
//
//     const int i = thread_index();
//     if (i >= count) return;
//
// Parameters that are not const are outputs, undefined before the launch, unless they say INOUT.

#pragma once

#ifndef real
#define real float
#endif

#define INOUT                   // read as well as written
#define KERNEL extern "C" __global__ void
constexpr int THREADS = 256;    // of a block, where a kernel does not say otherwise

__device__ __forceinline__ int thread_index() { return blockIdx.x * blockDim.x + threadIdx.x; }
