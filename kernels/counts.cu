// Figures of a segmentation from integers: class ids of a net's output, and counts of pixels [truth, prediction].
//
// Integers add up to the same in every order, so here, and only here, threads add by atomics.
#include "common.cuh"

// Counts [truth, prediction] of uint8 ids (pixels,); a pixel whose truth or prediction is no id is not counted, which
// the caller sees from the sum. A thread a pixel, then the next, a grid further: 2 bytes a pixel.
//
// Most pixels of an image fall on few of the ids² counts, and atomics on one address wait for each other. So every
// block has counts of its own in shared memory, as many copies side by side as fit, a power of two: 32 up to 11 ids,
// one from 46 to 64. Lane l of a warp adds to copy l % copies: up to 11 ids in a bank of its own; with more ids 32 /
// copies lanes share a copy, and wait for each other where they count the same pair or meet in a bank. Then a thread a
// count adds the copies up, and adds the sum to the global count. More than 64 ids go to the global counts directly.
constexpr int BINS = 4096;

KERNEL __launch_bounds__(THREADS)
confusion(const unsigned char* __restrict__ truth, const unsigned char* __restrict__ prediction,
          INOUT unsigned long long* counts, int pixels, int ids, int copies)
{
    __shared__ unsigned bins[BINS];                 // (ids, ids, copies), if there are any
    const int own = ids * ids * copies;
    for (int i = threadIdx.x; i < own; i += THREADS) bins[i] = 0;
    __syncthreads();
    for (unsigned i = thread_index(); i < (unsigned)pixels; i += gridDim.x * THREADS) {
        const int t = truth[i], p = prediction[i];
        if (t >= ids || p >= ids) continue;
        const int pair = t * ids + p;
        if (copies)
            atomicAdd(&bins[pair * copies + threadIdx.x % copies], 1u);
        else
            atomicAdd(&counts[pair], 1ull);
    }
    __syncthreads();
    for (int pair = threadIdx.x; pair < ids * ids && copies; pair += THREADS) {
        unsigned sum = 0;
        for (int copy = 0; copy < copies; copy++) sum += bins[pair * copies + (threadIdx.x + copy) % copies];
        if (sum) atomicAdd(&counts[pair], (unsigned long long)sum);
    }
}

// The class id of each pixel from a net's output (pixels, classes): the first of the largest (or of the NaNs), or for
// one class whether it reaches the threshold. A thread a pixel; a warp reads 32 rows that lie side by side, through
// the cache: 4 · classes + 1 bytes a pixel.
KERNEL __launch_bounds__(THREADS)
class_ids(const real* __restrict__ answer, unsigned char* __restrict__ ids, int pixels, int classes, real threshold)
{
    const int pixel = thread_index();
    if (pixel >= pixels) return;
    const real* row = answer + pixel * classes;
    int best = 0;
    for (int k = 1; k < classes; k++)
        if (row[k] > row[best] || (row[k] != row[k] && row[best] == row[best])) best = k;
    ids[pixel] = classes == 1 ? row[0] >= threshold : best;
}
