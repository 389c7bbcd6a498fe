// The sum of each channel over all pixels: x (pixels, channels) -> (channels,), as for the gradient of a bias.
//
// Two launches, the two stages of reduce.cuh: partial_sums (one block a chunk of pixels, for up to 128 channels) and
// total (one block a channel, in double).
//
// Bytes: x once, 4 a number in float; the parts are 1/32 of that or less (large images: 1/256 and less). FLOP: one
// addition a number. So memory bounds it: a warp reads 512 bytes by one instruction where 4 divides the channels, 128
// otherwise, whatever the number of channels, and four such loads are on their way at once.
//
// variants: default; VECTOR=4
#include "common.cuh"
#include "reduce.cuh"
#include "block_sum.cuh"

struct Sum {
    real value;
    __device__ void add(const Sum& other) { value += other.value; }
};

KERNEL __launch_bounds__(THREADS)
partial_sums(const real* __restrict__ x, real* __restrict__ parts, Cut cut)
{
    __shared__ Sum rows[VECTOR][THREADS];
    const Share share = share_of(cut);
    Vector<real> sum = repeated<real>(0);
    over_pixels(cut, share, [&](int offset) {
        const Vector<real> value = load(x + offset);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) sum.of[v] += value.of[v];
    });
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) rows[v][threadIdx.x].value = sum.of[v];
    add_rows(rows, cut, share);
    if (share.row > 0 || !share.any) return;
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) parts[place_of_part(share, v)] = rows[v][threadIdx.x].value;
}

KERNEL __launch_bounds__(THREADS)
total(const real* __restrict__ parts, real* __restrict__ sums, int chunks)
{
    const int channel = blockIdx.x;
    double sum = 0;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) sum += parts[channel * chunks + chunk];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[channel] = (real)sum;
}
