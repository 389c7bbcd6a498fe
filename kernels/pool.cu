// Pooling: each window reduced to its maximum or its mean. Unpooling: each value put at its window's winner.
//
// Images are (N, H, W, C), windows (N, OH, OW, C), the geometry is a Conv with filters = channels and dilation 1; a
// winner is a position inside its window, i * KW + j, in one byte (in four for windows of more than 256 positions).
//
//     max_pool2d               y[o] = max over the window, and the first position that has it      one thread: o
//     avg_pool2d               y[o] = sum over the window / (KH KW)                                 one thread: o
//     max_unpool2d_backward    y[o] = x[the winner's pixel]                                         one thread: o
//     max_unpool2d             x[p] = sum of y[o] over the windows o that p wins [+ onto[p]]        one thread: p
//     max_unpool2d_patches     the same for windows side by side                                    one thread: o
//     avg_pool2d_backward      x[p] = sum of y[o] over the windows o that cover p / (KH KW)         one thread: p
//
// max_unpool2d is the gradient of max_pool2d too; onto is then the gradient that the pooled map gets from elsewhere, in
// the U-Net from its skip connection. Every kernel gathers: a thread owns VECTOR channels of one place, o or p, and
// collects from the other side in a fixed order, where a scatter would need atomics and give other bits on each run.
// Neighbouring threads own neighbouring channels, then columns: a warp reads and writes runs of memory.
//
// Bytes: each side once. For 2x2 windows, stride 2, float: 16 read, 4 + 1 written a window and channel; the gradient
// 4 + 1 read, and 16 of onto, 16 written. Pixels read by several windows, or windows by several pixels, come out of the
// caches. FLOP: KH KW for each output, far less than the memory takes.
// variants: default; VECTOR=4
#include "common.cuh"
#include "conv.cuh"
#include "vector.cuh"

// Calls visit(position, offset of the pixel in x) for each position of the window (n, oh, ow) inside the image.
template <class Visit>
__device__ __forceinline__ void over_window(const Conv& s, int n, int oh, int ow, int c, Visit visit)
{
    const int top = oh * s.stride_h - s.pad_h, left = ow * s.stride_w - s.pad_w;
    const int row = s.width * s.channels, first = ((n * s.height + top) * s.width + left) * s.channels + c;
    if (s.kernel_h == 2 && s.kernel_w == 2 && s.pad_h == 0 && s.pad_w == 0) {     // four loads at once, none outside
        visit(0, first);
        visit(1, first + s.channels);
        visit(2, first + row);
        visit(3, first + row + s.channels);
        return;
    }
    for (int i = 0; i < s.kernel_h; i++) {
        if (top + i < 0 || top + i >= s.height) continue;
        #pragma unroll 1                        // unrolled it spills registers for some GPUs
        for (int j = 0; j < s.kernel_w; j++) {
            if (left + j < 0 || left + j >= s.width) continue;
            visit(i * s.kernel_w + j, first + i * row + j * s.channels);
        }
    }
}

// Calls visit(position, offset of the window in y) for each window that has the pixel (n, h, w) at that position, in
// order of the positions: the last window first.
template <class Visit>
__device__ __forceinline__ void over_windows_of(const Conv& s, int n, int h, int w, int c, Visit visit)
{
    for (int oh = min((h + s.pad_h) / s.stride_h, s.out_height - 1); oh >= 0; oh--) {
        const int i = h + s.pad_h - oh * s.stride_h;
        if (i >= s.kernel_h) break;
        for (int ow = min((w + s.pad_w) / s.stride_w, s.out_width - 1); ow >= 0; ow--) {
            const int j = w + s.pad_w - ow * s.stride_w;
            if (j >= s.kernel_w) break;
            visit(i * s.kernel_w + j, ((n * s.out_height + oh) * s.out_width + ow) * s.channels + c);
        }
    }
}

// Which channels of which place, of images of rows x columns places, a thread owns: its index, which
// counts vectors, taken apart.
struct Place {
    int n, row, column, c;
};

__device__ __forceinline__ Place place_of(int index, int rows, int columns, int channels)
{
    const int groups = channels / VECTOR, at = index / groups, line = at / columns;
    return {line / rows, line % rows, at % columns, index % groups * VECTOR};
}

__device__ __forceinline__ int outputs(const Conv& s)
{
    return s.images * s.out_height * s.out_width * (s.channels / VECTOR);
}

__device__ __forceinline__ int pixels(const Conv& s)
{
    return s.images * s.height * s.width * (s.channels / VECTOR);
}

// A NaN is carried on, and leaves as winner the largest before it; pixels of -inf never win, position 0 does.
template <typename Winner>
__device__ __forceinline__ void max_pool(const real* x, real* y, Winner* winners, const Conv& s)
{
    const int index = thread_index();
    if (index >= outputs(s)) return;
    const Place o = place_of(index, s.out_height, s.out_width, s.channels);
    Vector<real> best = repeated<real>(__uint_as_float(0xff800000));     // -inf
    Vector<Winner> winner = repeated<Winner>(0);
    over_window(s, o.n, o.row, o.column, o.c, [&](int position, int pixel) {
        const Vector<real> candidate = load(x + pixel);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) {
            const real value = candidate.of[v];
            if (value > best.of[v]) winner.of[v] = position;
            if (value > best.of[v] || value != value) best.of[v] = value;
        }
    });
    store(y + index * VECTOR, best);
    store(winners + index * VECTOR, winner);
}

KERNEL __launch_bounds__(THREADS)
max_pool2d(const real* __restrict__ x, real* __restrict__ y, unsigned char* __restrict__ winners, Conv shape)
{
    max_pool(x, y, winners, shape);
}

KERNEL __launch_bounds__(THREADS)
max_pool2d_wide(const real* __restrict__ x, real* __restrict__ y, unsigned* __restrict__ winners, Conv shape)
{
    max_pool(x, y, winners, shape);
}

// A value times 0 where it is not the winner's: as on the CPU, the NaN of an infinite gradient shows in all its window.
template <typename Winner>
__device__ __forceinline__ void unpool(const real* y, const Winner* winners, const real* onto, real* x, const Conv& s,
                                       int with_onto)
{
    const int index = thread_index();
    if (index >= pixels(s)) return;
    const Place p = place_of(index, s.height, s.width, s.channels);
    Vector<real> sum = with_onto ? load(onto + index * VECTOR) : repeated<real>(0);
    over_windows_of(s, p.n, p.row, p.column, p.c, [&](int position, int window) {
        const Vector<real> value = load(y + window);
        const Vector<Winner> winner = load(winners + window);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) sum.of[v] += value.of[v] * (real)(winner.of[v] == position);
    });
    store(x + index * VECTOR, sum);
}

KERNEL __launch_bounds__(THREADS)
max_unpool2d(const real* __restrict__ y, const unsigned char* __restrict__ winners, const real* __restrict__ onto,
             real* __restrict__ x, Conv shape, int with_onto)
{
    unpool(y, winners, onto, x, shape, with_onto);
}

KERNEL __launch_bounds__(THREADS)
max_unpool2d_wide(const real* __restrict__ y, const unsigned* __restrict__ winners, const real* __restrict__ onto,
                  real* __restrict__ x, Conv shape, int with_onto)
{
    unpool(y, winners, onto, x, shape, with_onto);
}

// Windows side by side (kernel = stride, no padding), the U-Net's own: no two share a pixel, so that a thread owns a
// whole window with its KH x KW pixels, and reads value and winner once. The windows that the image's lower and right
// border cut through do not exist: nothing is added to their pixels.
KERNEL __launch_bounds__(THREADS)
max_unpool2d_patches(const real* __restrict__ y, const unsigned char* __restrict__ winners,
                     const real* __restrict__ onto, real* __restrict__ x, Conv shape, int with_onto)
{
    const Conv& s = shape;
    const int rows = (s.height + s.kernel_h - 1) / s.kernel_h, columns = (s.width + s.kernel_w - 1) / s.kernel_w;
    const int index = thread_index();
    if (index >= s.images * rows * columns * (s.channels / VECTOR)) return;
    const Place o = place_of(index, rows, columns, s.channels);
    Vector<real> value = repeated<real>(0);
    Vector<unsigned char> winner = repeated<unsigned char>(0);
    if (o.row < s.out_height && o.column < s.out_width) {
        const int window = ((o.n * s.out_height + o.row) * s.out_width + o.column) * s.channels + o.c;
        value = load(y + window);
        winner = load(winners + window);
    }
    for (int i = 0; i < s.kernel_h; i++) {
        const int h = o.row * s.kernel_h + i;
        if (h >= s.height) break;
        for (int j = 0; j < s.kernel_w; j++) {
            const int w = o.column * s.kernel_w + j, position = i * s.kernel_w + j;
            if (w >= s.width) break;
            const int at = ((o.n * s.height + h) * s.width + w) * s.channels + o.c;
            Vector<real> sum = with_onto ? load(onto + at) : repeated<real>(0);
            #pragma unroll
            for (int v = 0; v < VECTOR; v++) sum.of[v] += value.of[v] * (real)(winner.of[v] == position);
            store(x + at, sum);
        }
    }
}

// The whole window is read, by whole vectors, because with four channels to a thread most of it holds a winner.
template <typename Winner>
__device__ __forceinline__ void unpool_backward(const real* dx, const Winner* winners, real* dy, const Conv& s)
{
    const int index = thread_index();
    if (index >= outputs(s)) return;
    const Place o = place_of(index, s.out_height, s.out_width, s.channels);
    const Vector<Winner> winner = load(winners + index * VECTOR);
    Vector<real> sum = repeated<real>(0);
    over_window(s, o.n, o.row, o.column, o.c, [&](int position, int pixel) {
        const Vector<real> value = load(dx + pixel);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) sum.of[v] += value.of[v] * (real)(winner.of[v] == position);
    });
    store(dy + index * VECTOR, sum);
}

KERNEL __launch_bounds__(THREADS)
max_unpool2d_backward(const real* __restrict__ dx, const unsigned char* __restrict__ winners, real* __restrict__ dy,
                      Conv shape)
{
    unpool_backward(dx, winners, dy, shape);
}

KERNEL __launch_bounds__(THREADS)
max_unpool2d_backward_wide(const real* __restrict__ dx, const unsigned* __restrict__ winners, real* __restrict__ dy,
                           Conv shape)
{
    unpool_backward(dx, winners, dy, shape);
}

KERNEL __launch_bounds__(THREADS)
avg_pool2d(const real* __restrict__ x, real* __restrict__ y, Conv shape)
{
    const int index = thread_index();
    if (index >= outputs(shape)) return;
    const Place o = place_of(index, shape.out_height, shape.out_width, shape.channels);
    const real count = (real)(shape.kernel_h * shape.kernel_w);
    Vector<real> mean = repeated<real>(0);
    over_window(shape, o.n, o.row, o.column, o.c, [&](int, int pixel) {
        const Vector<real> value = load(x + pixel);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) mean.of[v] += value.of[v];
    });
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) mean.of[v] /= count;
    store(y + index * VECTOR, mean);
}

KERNEL __launch_bounds__(THREADS)
avg_pool2d_backward(const real* __restrict__ dy, real* __restrict__ dx, Conv shape)
{
    const int index = thread_index();
    if (index >= pixels(shape)) return;
    const Place p = place_of(index, shape.height, shape.width, shape.channels);
    const real count = (real)(shape.kernel_h * shape.kernel_w);
    Vector<real> sum = repeated<real>(0);
    over_windows_of(shape, p.n, p.row, p.column, p.c, [&](int, int window) {
        const Vector<real> value = load(dy + window);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) sum.of[v] += value.of[v] / count;
    });
    store(dx + index * VECTOR, sum);
}
