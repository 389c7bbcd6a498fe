// Losses from logits (pixels, classes), with their gradient: cross-entropy and binary cross-entropy.
//
// In cross-entropy a group of lanes owns a pixel (loss.cuh), in binary cross-entropy a thread owns a logit.
//
// What a sum over all pixels decides, the share of a pixel in the mean, must be known before the gradient: first a pass
// that only adds up, then one that writes. A sum has two stages: every block adds its pixels and leaves a double, then
// one block (or each one, for itself) adds the blocks' in a fixed order. No atomics: same bits.
//
// Bytes a pixel, for K classes in float: cross-entropy 4 + 8 K, where 8 K is one copy of the logits, and before it 4
// for Σ w, a pass that is launched only if there are weights or a value to ignore; binary cross-entropy 12 K, and
// before it 4 K for the count, only if there is a value to ignore. Weights add 4 a pass. About 30 FLOP a class and pass
// beside two exponentials: bound by memory.
#include "common.cuh"
#include "block_sum.cuh"
#include "loss.cuh"
#include "pointwise.cuh"

// ---- the weights

__device__ __forceinline__ real weight_of(const real* __restrict__ weights, const real* __restrict__ class_weights,
                                          int pixel, int k, Loss loss)
{
    real w = 1;
    if (loss.weighted) w = weights[pixel];
    if (loss.class_weighted) w *= class_weights[k];
    return w;
}

// Σ of numbers that blocks left, in every thread of the block
__device__ __forceinline__ double sum_of(const double* __restrict__ parts, int count)
{
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
    return block_sum(sum);
}

// Σ w over the pixels that count: one sum a block. A thread a pixel (then the next, a grid further); indices are
// unsigned because the last step may pass 2^31.
KERNEL __launch_bounds__(THREADS)
sum_weights(const int* __restrict__ target, const real* __restrict__ weights, const real* __restrict__ class_weights,
            double* __restrict__ sums, Loss loss)
{
    double sum = 0;
    for (unsigned pixel = thread_index(); pixel < (unsigned)loss.pixels; pixel += gridDim.x * THREADS) {
        const int t = target[pixel];
        if (t != loss.ignore) sum += weight_of(weights, class_weights, pixel, t, loss);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// How many of a target's fractions count: one number a block
KERNEL __launch_bounds__(THREADS)
count_fractions(const real* __restrict__ target, double* __restrict__ sums, Loss loss)
{
    const unsigned count = (unsigned)loss.pixels * loss.classes;
    int valid = 0;
    for (unsigned i = thread_index(); i < count; i += gridDim.x * THREADS) valid += target[i] != (real)loss.ignore;
    const double sum = block_sum(valid);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The loss from the blocks' losses; one block
KERNEL __launch_bounds__(THREADS)
total_loss(const double* __restrict__ losses, int count, real* __restrict__ y)
{
    const double sum = sum_of(losses, count);
    if (threadIdx.x == 0) y[0] = (real)sum;
}

// ---- cross-entropy: l = log Σ_k exp(z_k) - z_t, shares w / Σ w; gradient share · (p_k - [k = t])

KERNEL __launch_bounds__(THREADS, SHARING)
cross_entropy(const real* __restrict__ logits, const int* __restrict__ target, const real* __restrict__ weights,
              const real* __restrict__ class_weights, const double* __restrict__ sums, int sum_count,
              real* __restrict__ gradient, double* __restrict__ losses, Loss loss)
{
    const double total = sum_of(sums, sum_count), part = total > 0 ? 1 / total : 0;
    const int lane = threadIdx.x % loss.group, member = threadIdx.x / loss.group, width = THREADS / loss.group;
    double sum = 0;
    for (unsigned first = blockIdx.x * width; first < (unsigned)loss.pixels; first += gridDim.x * width) {
        const bool inside = first + member < (unsigned)loss.pixels;
        const int pixel = inside ? first + member : first;
        const int t = target[pixel];
        const bool valid = inside && t != loss.ignore;
        const real share = valid ? (real)(weight_of(weights, class_weights, pixel, t, loss) * part) : 0;
        const real* z = logits + pixel * loss.classes;
        const Softmax s = group_softmax(z, lane, loss);
        const real scale = 1 / s.sum;
        #pragma unroll 1
        for (int k = lane; k < loss.classes; k += loss.group) {
            const real shifted = z[k] - s.top;
            const real p = exp(shifted) * scale;
            if (inside) gradient[pixel * loss.classes + k] = valid ? share * (k == t ? p - 1 : p) : 0;
            if (valid && k == t) sum += share * (log(s.sum) - shifted);
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = sum;
}

// ---- binary cross-entropy: l = max(z, 0) - z t + log(1 + e^-|z|), shares w / count; gradient share · (σ(z) - t).
// Elements know nothing of each other: a thread an element.

KERNEL __launch_bounds__(THREADS, SHARING)
bce_with_logits(const real* __restrict__ logits, const real* __restrict__ target, const real* __restrict__ weights,
                const real* __restrict__ class_weights, const double* __restrict__ sums, int sum_count,
                real* __restrict__ gradient, double* __restrict__ losses, Loss loss)
{
    const double total = sum_of(sums, sum_count), part = total > 0 ? 1 / total : 0;
    const unsigned count = (unsigned)loss.pixels * loss.classes;
    double sum = 0;
    for (unsigned i = thread_index(); i < count; i += gridDim.x * THREADS) {
        const real z = logits[i], t = target[i];
        if (t == (real)loss.ignore) {
            gradient[i] = 0;
            continue;
        }
        real w = 1;
        if (loss.weighted) w = weights[i / loss.classes];
        if (loss.class_weighted) w *= class_weights[i % loss.classes];
        const real share = (real)(w * part), e = exp(-fabs(z));
        gradient[i] = share * (sigmoid_of(z, e) - t);
        sum += share * ((z > 0 ? z : 0) - z * t + log1p(e));
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = sum;
}
