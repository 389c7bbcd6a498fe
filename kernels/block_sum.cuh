// The sum of one number a thread over a block, in double and in a fixed order: the same bits in every run.
//
// A warp adds up by a butterfly of shuffles (every lane holds the warp's sum, the same bits), then every thread adds
// the warps' sums in their order. Blocks of whole warps; every thread must call it; every thread gets the sum.

#pragma once

#include "group.cuh"

__device__ __forceinline__ double block_sum(double value)
{
    __shared__ double warps[32];
    value = group_sum(value, 32);
    __syncthreads();                                // whoever still reads an earlier sum is done
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += warps[warp];
    return sum;
}
