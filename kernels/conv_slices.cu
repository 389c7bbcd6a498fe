// Adds up the partial results of rungs 3 and 4, where they cut a sum into slices, in a fixed order.
//
//     y[i] = partial[0, i] + partial[1, i] + ... (+ bias[i % channels], then ReLU)           partial (slices, count)
//
// A block owns 32 numbers: lane l of warp w adds slices w, w + 8, ... of number l, then the first warp adds the eight
// sums in turn. Thus even a few numbers in many slices (the first layer's weight gradient) keep 8 warps loading.
// The lanes of a warp read 32 neighbours. Bytes: 4 count (slices + 1); FLOP: one for each number read.
#include "common.cuh"
#include "pointwise.cuh"

constexpr int WARPS = 8;

KERNEL __launch_bounds__(THREADS)
sum_slices(const real* __restrict__ partial, const real* __restrict__ bias, real* __restrict__ y, int count,
           int slices, int channels, int with_bias, int with_relu)
{
    __shared__ real sums[WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int i = blockIdx.x * 32 + lane;

    real sum = 0;
    if (i < count) {
        for (int slice = warp; slice < slices; slice += WARPS) sum += partial[slice * count + i];
    }
    sums[warp][lane] = sum;
    __syncthreads();

    if (warp > 0 || i >= count) return;
    for (int w = 1; w < WARPS; w++) sum += sums[w][lane];
    if (with_bias) sum += bias[i % channels];
    y[i] = with_relu ? relu_of(sum) : sum;
}
