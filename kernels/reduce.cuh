// Sums over all pixels, one for each channel: how x (pixels, channels) is cut up, and how its parts are put together.
//
// Stage 1, a block: `chunk` consecutive pixels of `width` * VECTOR neighbouring channels. Its threads stand in `rows`
// rows of `width`; the thread in row r owns VECTOR channels of the chunk's pixels r, r + rows, r + 2 rows, ...: every
// step of the block reads `rows` runs of memory, which join into one where the block has all channels. Then the rows
// are added up in shared memory, row r + half to row r < half, in log2(rows) steps. The block leaves a part a channel.
// Stage 2, a block: one channel; adds the parts of all chunks in double.
//
//     width = 3 (channels), rows = 85 (255 of 256 threads work):   | p0 p0 p0 | p1 p1 p1 | ... | p84 p84 p84 |  step 0
//                                                                  | p85 p85 p85 | ...                       |  step 1
//
// The cut follows from the shape of x alone (minunet/ops/kernels/sums.py), no thread adds to what another one owns, and
// every sum has a fixed order: the same bits in each run. A thread adds at most 256 numbers in x's own type, then come
// at most 8 steps of pairs: float loses at worst 2e-5 of the sum of the magnitudes, commonly some 1e-7.
//
// Kernels that go through all pixels with values of each channel at hand (norm.cu) use the same cut: a thread fetches
// the values of its channels once.

#pragma once
#include "common.cuh"
#include "vector.cuh"

struct Cut { int pixels, channels, width, rows, chunk; };

// A thread's share of its block's work: pixels first, first + rows, ... below end, VECTOR channels from `channel` on.
struct Share {
    int first, end, channel, row, count;        // count: how many pixels these are
    bool any;
};

__device__ __forceinline__ Share share_of(const Cut& cut)
{
    Share share;
    const int start = blockIdx.x * cut.chunk;
    share.row = threadIdx.x / cut.width;
    share.channel = (blockIdx.y * cut.width + threadIdx.x % cut.width) * VECTOR;
    share.first = start + share.row;
    share.end = start + min(cut.chunk, cut.pixels - start);
    share.any = share.row < cut.rows && share.channel < cut.channels && share.first < share.end;
    share.count = share.any ? (share.end - share.first + cut.rows - 1) / cut.rows : 0;
    return share;
}

constexpr int AT_ONCE = 16 / sizeof(real);      // pixels whose loads are on their way at once

// Calls visit(offset of the pixel's VECTOR channels) for each pixel of the share.
template <class Visit>
__device__ __forceinline__ void over_pixels(const Cut& cut, const Share& share, Visit visit)
{
    const int start = share.first * cut.channels + share.channel, step = cut.rows * cut.channels;
    #pragma unroll AT_ONCE
    for (int i = 0; i < share.count; i++) visit(start + i * step);
}

// Adds the rows' parts, parts[v][thread], up into those of row 0. Every thread must call it, with its parts in place.
template <class Part>
__device__ __forceinline__ void add_rows(Part (*parts)[THREADS], const Cut& cut, const Share& share)
{
    int half = 1;
    while (2 * half < cut.rows) half *= 2;
    for (; half > 0; half /= 2) {
        __syncthreads();
        if (share.row < half && share.row + half < cut.rows) {
            #pragma unroll
            for (int v = 0; v < VECTOR; v++) parts[v][threadIdx.x].add(parts[v][threadIdx.x + half * cut.width]);
        }
    }
}

// Where the block's part of its v-th channel belongs, for threads of row 0: parts are (channels, chunks), so that stage
// 2 reads a run.
__device__ __forceinline__ int place_of_part(const Share& share, int v)
{
    return (share.channel + v) * gridDim.x + blockIdx.x;
}
