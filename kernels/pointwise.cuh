// Functions of one number that several files need.

#pragma once
#include "common.cuh"

// max(x, 0), at the end of a convolution; a NaN stays one
__device__ __forceinline__ real relu_of(real x) { return x < 0 ? (real)0 : x; }

// 1 / (1 + exp(-x)) from e = exp(-|x|), which is in (0, 1] and cannot overflow
__device__ __forceinline__ real sigmoid_of(real x, real e) { return (x >= 0 ? 1 : e) / (1 + e); }

__device__ __forceinline__ real sigmoid_of(real x) { return sigmoid_of(x, exp(-fabs(x))); }
