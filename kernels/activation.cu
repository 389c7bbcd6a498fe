// Activations, element by element, and softmax over the channels; with each its gradient from its output y.
//
// Element by element: a thread owns VECTOR neighbouring numbers (4 where that divides their count). A warp reads and
// writes runs of 512 bytes in float. Bytes a number: 8 forward (4 read, 4 written), 12 backward; FLOP 1 to 20: memory
// bounds them.
//
// Softmax: `group` neighbouring threads own a row of channels, VECTOR channels each at a time, group the power of two
// that suffices for the row, 32 at most: the threads of a warp read neighbouring addresses whatever the number of
// channels, and a row's maximum and sum are log2(group) shuffles.
//
//     3 channels, group 4:    | p0 p0 p0 . | p1 p1 p1 . | p2 p2 p2 . | ...        a warp holds 8 rows
//
// Most rows need one step of each loop (up to 32 * VECTOR channels), so these are not unrolled. A row is read for its
// maximum and again, out of the L1 cache, for the sum and for the quotients. Bytes a number as above; two exponentials.
//
// NaN and infinities go the way that they go on the CPU: comparisons are written for it.
//
// variants: default; VECTOR=4
#include "common.cuh"
#include "group.cuh"
#include "pointwise.cuh"
#include "vector.cuh"

// y = f(x)
template <class F>
__device__ __forceinline__ void map(const real* x, real* y, int count, F f)
{
    const int i = thread_index() * VECTOR;
    if (i >= count) return;
    Vector<real> value = load(x + i);
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) value.of[v] = f(value.of[v]);
    store(y + i, value);
}

// dx = f(dy, y)
template <class F>
__device__ __forceinline__ void map(const real* dy, const real* y, real* dx, int count, F f)
{
    const int i = thread_index() * VECTOR;
    if (i >= count) return;
    Vector<real> gradient = load(dy + i);
    const Vector<real> value = load(y + i);
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) gradient.of[v] = f(gradient.of[v], value.of[v]);
    store(dx + i, gradient);
}

// max(x, 0); a NaN stays one
KERNEL __launch_bounds__(THREADS)
relu(const real* __restrict__ x, real* __restrict__ y, int count)
{
    map(x, y, count, [](real x) { return x <= 0 ? (real)0 : x; });
}

// A product, not a selection: an infinite dy gives NaN where y is 0.
KERNEL __launch_bounds__(THREADS)
relu_backward(const real* __restrict__ dy, const real* __restrict__ y, real* __restrict__ dx, int count)
{
    map(dy, y, dx, count, [](real dy, real y) { return dy * (real)(y > 0); });
}

KERNEL __launch_bounds__(THREADS)
leaky_relu(const real* __restrict__ x, real* __restrict__ y, int count, real slope)
{
    map(x, y, count, [=](real x) { return x > 0 ? x : slope * x; });
}

KERNEL __launch_bounds__(THREADS)
leaky_relu_backward(const real* __restrict__ dy, const real* __restrict__ y, real* __restrict__ dx, int count,
                    real slope)
{
    map(dy, y, dx, count, [=](real dy, real y) { return y > 0 ? dy : slope * dy; });
}

// expm1, as exp(x) - 1 would lose what is small
KERNEL __launch_bounds__(THREADS)
elu(const real* __restrict__ x, real* __restrict__ y, int count, real alpha)
{
    map(x, y, count, [=](real x) { return x > 0 ? x : alpha * expm1(x); });
}

// alpha exp(x) = y + alpha where x <= 0
KERNEL __launch_bounds__(THREADS)
elu_backward(const real* __restrict__ dy, const real* __restrict__ y, real* __restrict__ dx, int count, real alpha)
{
    map(dy, y, dx, count, [=](real dy, real y) { return y > 0 ? dy : dy * (y + alpha); });
}

KERNEL __launch_bounds__(THREADS)
sigmoid(const real* __restrict__ x, real* __restrict__ y, int count)
{
    map(x, y, count, [](real x) { return sigmoid_of(x); });
}

KERNEL __launch_bounds__(THREADS)
sigmoid_backward(const real* __restrict__ dy, const real* __restrict__ y, real* __restrict__ dx, int count)
{
    map(dy, y, dx, count, [](real dy, real y) { return dy * y * (1 - y); });
}

// ---- softmax

// Which row a thread works on, and from which of its channels on. Threads beyond the last row work along on that one
// (a shuffle needs the whole warp) and write nothing.
struct Row {
    int start, channel;     // where it starts in the array; the first channel
    bool mine;
};

__device__ __forceinline__ Row row_of(int rows, int channels, int group)
{
    const unsigned thread = thread_index();     // up to twice as many as numbers: more than an int may count
    const int row = thread / group;
    return {min(row, rows - 1) * channels, (int)(thread % group) * VECTOR, row < rows};
}

// A NaN may get lost in the maximum, but not in the sum. 4 blocks: in double the compiler would spill for more.
KERNEL __launch_bounds__(THREADS, 4)
softmax(const real* __restrict__ x, real* __restrict__ y, int rows, int channels, int group)
{
    const Row row = row_of(rows, channels, group);
    real top = x[row.start];
    #pragma unroll 1
    for (int c = row.channel; c < channels; c += group * VECTOR) {
        const Vector<real> value = load(x + row.start + c);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) top = value.of[v] > top ? value.of[v] : top;
    }
    top = group_max(top, group);

    real sum = 0;
    #pragma unroll 1
    for (int c = row.channel; c < channels; c += group * VECTOR) {
        const Vector<real> value = load(x + row.start + c);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) sum += exp(value.of[v] - top);
    }
    sum = group_sum(sum, group);

    if (!row.mine) return;
    #pragma unroll 1
    for (int c = row.channel; c < channels; c += group * VECTOR) {
        Vector<real> value = load(x + row.start + c);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) value.of[v] = exp(value.of[v] - top) / sum;
        store(y + row.start + c, value);
    }
}

// dx = y (dy - sum of dy y)
KERNEL __launch_bounds__(THREADS)
softmax_backward(const real* __restrict__ dy, const real* __restrict__ y, real* __restrict__ dx, int rows, int channels,
                 int group)
{
    const Row row = row_of(rows, channels, group);
    real sum = 0;
    #pragma unroll 1
    for (int c = row.channel; c < channels; c += group * VECTOR) {
        const Vector<real> value = load(y + row.start + c), gradient = load(dy + row.start + c);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) sum += gradient.of[v] * value.of[v];
    }
    sum = group_sum(sum, group);

    if (!row.mine) return;
    #pragma unroll 1
    for (int c = row.channel; c < channels; c += group * VECTOR) {
        const Vector<real> value = load(y + row.start + c);
        Vector<real> gradient = load(dy + row.start + c);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) gradient.of[v] = value.of[v] * (gradient.of[v] - sum);
        store(dx + row.start + c, gradient);
    }
}
