// Channels taken from one image into another: concatenation, one launch for each part, and its gradient.
//
// A thread owns VECTOR of the `channels` channels that are copied at one of the pixels: pixel p's channels
// from_first, from_first + 1, ... of `from` (pixels, from_channels) become its channels to_first, to_first + 1, ... of
// `to` (pixels, to_channels). The others of `to` stay as they are.
//
// Bytes: each number is read once and written once; no FLOP. Neighbouring threads copy neighbouring channels, so that a
// warp reads and writes runs of `channels` numbers. In float they are whole sectors of 32 bytes where `channels`,
// from_channels, from_first, to_channels and to_first are all multiples of 8; else the ends of the runs are parts.
// variants: default; VECTOR=4
#include "common.cuh"
#include "vector.cuh"

KERNEL __launch_bounds__(THREADS)
copy_channels(const real* __restrict__ from, INOUT real* __restrict__ to, int pixels, int channels,
              int from_channels, int from_first, int to_channels, int to_first)
{
    const int index = thread_index(), groups = channels / VECTOR;
    if (index >= pixels * groups) return;
    const int c = index % groups * VECTOR, pixel = index / groups;
    store(to + pixel * to_channels + to_first + c, load(from + pixel * from_channels + from_first + c));
}
