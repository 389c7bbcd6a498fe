// Batch normalisation of x (pixels, channels): y = gamma (x - mean) / sigma + beta, sigma = sqrt(var + eps), optionally
// followed by ReLU, with the batch's own mean and variance (training) or with given ones (prediction).
//
// All kernels that read x cut it as reduce.cuh says: a thread owns VECTOR channels of some pixels. Training takes, with
// the bytes of memory for each number of x in float:
//
//     moments, batch_statistics          mean and var in one pass over x                              reads 4
//     normalize                          y                                                            reads 4, writes 4
//     gradient_sums, parameter_gradients dbeta = sum g, dgamma = sum g x_hat                          reads 8
//     input_gradient                     dx = gamma / sigma (g - dbeta / n - x_hat dgamma / n)        reads 8, writes 4
//
// with g = dy, where the ReLU is fused g = dy (y > 0). Neither x_hat nor y is kept for the backward pass: both are
// computed again from x, y by the very same operations (`y_of`), so that its sign cannot differ. All are bound by
// memory: 3 to 10 FLOP a number.
//
// Moments. The textbook's sum of x^2 minus count mean^2 loses everything where the mean is a thousand times sigma. A
// thread instead takes its first number as a pivot and sums d = x - pivot and d^2: then
//
//     mean = pivot + sum d / n,       square = sum (x - mean)^2 = sum d^2 - (sum d)^2 / n
//
// and since the pivot is one of the n numbers, sum d^2 is at most n times `square`, however they lie: with n <= 256 a
// thread loses at worst 256 roundings, 1e-5 in float, and where the pivot is an ordinary number 1e-7. (Welford's
// recurrence does the same with a division a number.) Parts a and b join by Chan's formula,
//
//     delta = mean_b - mean_a,  mean = mean_a + delta n_b / n,  square = square_a + square_b + delta^2 n_a n_b / n
//
// in a fixed order, with means counted from the block's first pixel: they are a few sigma long, and the distance from 0
// costs no digits. The chunks join in double, in stage 2.
//
// Source: Ioffe and Szegedy (2015); Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm (1979).
//
// variants: default; VECTOR=4
#include "common.cuh"
#include "reduce.cuh"
#include "block_sum.cuh"

// ---- training: the batch's statistics

struct Moments {
    real count, mean, square;       // mean: less the block's first pixel

    __device__ void add(const Moments& other)
    {
        if (other.count == 0) return;                       // a row beyond the last pixel
        const real sum = count + other.count, share = other.count / sum, delta = other.mean - mean;
        mean += delta * share;
        square += other.square + delta * delta * (count * share);
        count = sum;
    }
};

// means, squares (channels, chunks). 4 blocks: with its own choice, 8 of them, the compiler runs out of registers.
KERNEL __launch_bounds__(THREADS, 4)
moments(const real* __restrict__ x, double* __restrict__ means, real* __restrict__ squares, Cut cut)
{
    __shared__ Moments rows[VECTOR][THREADS];
    const Share share = share_of(cut);
    Vector<real> pivot = repeated<real>(0), base = pivot, sum = pivot, square = pivot;
    if (share.any) {
        pivot = load(x + share.first * cut.channels + share.channel);
        base = load(x + (share.first - share.row) * cut.channels + share.channel);
    }
    over_pixels(cut, share, [&](int offset) {
        const Vector<real> value = load(x + offset);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) {
            const real d = value.of[v] - pivot.of[v];
            sum.of[v] += d;
            square.of[v] += d * d;
        }
    });
    const real count = (real)share.count;
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) {
        const real offset = share.any ? sum.of[v] / count : 0;
        rows[v][threadIdx.x] = {count, pivot.of[v] - base.of[v] + offset, square.of[v] - sum.of[v] * offset};
    }
    add_rows(rows, cut, share);
    if (share.row > 0 || !share.any) return;
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) {
        means[place_of_part(share, v)] = (double)base.of[v] + rows[v][threadIdx.x].mean;
        squares[place_of_part(share, v)] = rows[v][threadIdx.x].square;
    }
}

// Chan's formula for all chunks at once: mean = sum n_k mean_k / n, square = sum square_k + n_k (mean_k - mean)^2.
// Means are counted from the first chunk's, so that those of a constant channel are exact.
KERNEL __launch_bounds__(THREADS)
batch_statistics(const double* __restrict__ means, const real* __restrict__ squares, real* __restrict__ mean,
                 real* __restrict__ var, Cut cut, int chunks)
{
    const int channel = blockIdx.x, first = channel * chunks;
    const double pivot = means[first];
    double sum = 0;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
        const int count = min(cut.chunk, cut.pixels - chunk * cut.chunk);
        sum += count * (means[first + chunk] - pivot);
    }
    const double offset = block_sum(sum) / cut.pixels;
    double square = 0;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
        const int count = min(cut.chunk, cut.pixels - chunk * cut.chunk);
        const double d = means[first + chunk] - pivot - offset;
        square += squares[first + chunk] + count * d * d;
    }
    square = block_sum(square);
    if (threadIdx.x > 0) return;
    mean[channel] = (real)(pivot + offset);
    var[channel] = (real)(square / cut.pixels);
}

// running <- (1 - momentum) running + momentum batch, a thread a channel. unbiased = n / (n - 1) makes the unbiased
// variance of var; of n = 1 there is none: 0, and the running one stays.
KERNEL __launch_bounds__(THREADS)
update_running(const real* __restrict__ mean, const real* __restrict__ var, INOUT real* __restrict__ running_mean,
               INOUT real* __restrict__ running_var, int channels, real momentum, real rest, real unbiased)
{
    const int c = thread_index();
    if (c >= channels) return;
    running_mean[c] = rest * running_mean[c] + momentum * mean[c];
    if (unbiased > 0) running_var[c] = rest * running_var[c] + momentum * (var[c] * unbiased);
}

// ---- prediction: batch norm as a part of the convolution before it

// The weights (K, filters), K = KH KW C, and the bias with which A x + b is batch norm of A x: folded = w gamma / sigma
// and shift = beta - mean gamma / sigma. A thread owns a weight, so that a warp reads and writes 128 neighbouring bytes
// (float); the first ones also own a filter's shift. The numbers of the filters stay in the cache.
KERNEL __launch_bounds__(THREADS)
fold(const real* __restrict__ w, const real* __restrict__ gamma, const real* __restrict__ beta,
     const real* __restrict__ mean, const real* __restrict__ var, real* __restrict__ folded, real* __restrict__ shift,
     int count, int filters, real eps)
{
    const int i = thread_index();
    if (i >= count) return;
    const int f = i % filters;
    const real scale = gamma[f] / sqrt(var[f] + eps);
    folded[i] = w[i] * scale;
    if (i < filters) shift[f] = beta[f] - mean[f] * scale;
}

// ---- x -> y

// What y = (x - mean) scale + beta needs of a thread's channels, scale = gamma / sigma.
struct Affine {
    Vector<real> mean, scale, beta;
};

__device__ __forceinline__ Affine affine_of(const Share& share, const real* mean, const real* var, const real* gamma,
                                            const real* beta, real eps)
{
    Affine affine = {load(mean + share.channel), load(gamma + share.channel), load(beta + share.channel)};
    const Vector<real> variance = load(var + share.channel);
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) affine.scale.of[v] /= sqrt(variance.of[v] + eps);
    return affine;
}

// fma, not a product and a sum that the compiler may or may not join: the same bits in every kernel.
__device__ __forceinline__ real y_of(real x, const Affine& affine, int v)
{
    return fma(x - affine.mean.of[v], affine.scale.of[v], affine.beta.of[v]);
}

KERNEL __launch_bounds__(THREADS)
normalize(const real* __restrict__ x, const real* __restrict__ mean, const real* __restrict__ var,
          const real* __restrict__ gamma, const real* __restrict__ beta, real* __restrict__ y, Cut cut, real eps,
          int with_relu)
{
    const Share share = share_of(cut);
    if (!share.any) return;
    const Affine affine = affine_of(share, mean, var, gamma, beta, eps);
    over_pixels(cut, share, [&](int offset) {
        Vector<real> value = load(x + offset);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) {
            value.of[v] = y_of(value.of[v], affine, v);
            if (with_relu && value.of[v] <= 0) value.of[v] = 0;        // a NaN stays one
        }
        store(y + offset, value);
    });
}

// ---- dy -> dx, dgamma, dbeta

// dy behind the ReLU. A product, not a selection: an infinite dy gives NaN where y is 0, as on the CPU.
__device__ __forceinline__ real behind_relu(real dy, real y)
{
    return dy * (real)(y > 0);
}

// Moved as one: two numbers a thread, read apart, would each ask every second bank of shared memory twice.
struct alignas(2 * sizeof(real)) GradientSums {
    real g, g_d;                        // sum g, sum g (x - mean)

    __device__ void add(const GradientSums& other)
    {
        const GradientSums a = *this, b = other;
        *this = {a.g + b.g, a.g_d + b.g_d};
    }
};

// sums_g, sums_g_d (channels, chunks)
KERNEL __launch_bounds__(THREADS)
gradient_sums(const real* __restrict__ dy, const real* __restrict__ x, const real* __restrict__ mean,
              const real* __restrict__ var, const real* __restrict__ gamma, const real* __restrict__ beta,
              real* __restrict__ sums_g, real* __restrict__ sums_g_d, Cut cut, real eps, int with_relu)
{
    __shared__ GradientSums rows[VECTOR][THREADS];
    const Share share = share_of(cut);
    Vector<real> sum_g = repeated<real>(0), sum_g_d = sum_g;
    if (share.any) {
        const Affine affine = affine_of(share, mean, var, gamma, beta, eps);
        over_pixels(cut, share, [&](int offset) {
            const Vector<real> value = load(x + offset), gradient = load(dy + offset);
            #pragma unroll
            for (int v = 0; v < VECTOR; v++) {
                real g = gradient.of[v];
                if (with_relu) g = behind_relu(g, y_of(value.of[v], affine, v));
                sum_g.of[v] += g;
                sum_g_d.of[v] += g * (value.of[v] - affine.mean.of[v]);
            }
        });
    }
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) rows[v][threadIdx.x] = {sum_g.of[v], sum_g_d.of[v]};
    add_rows(rows, cut, share);
    if (share.row > 0 || !share.any) return;
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) {
        sums_g[place_of_part(share, v)] = rows[v][threadIdx.x].g;
        sums_g_d[place_of_part(share, v)] = rows[v][threadIdx.x].g_d;
    }
}

// dbeta = sum g, dgamma = sum g (x - mean) / sigma: one block a channel.
KERNEL __launch_bounds__(THREADS)
parameter_gradients(const real* __restrict__ sums_g, const real* __restrict__ sums_g_d, const real* __restrict__ var,
                    real* __restrict__ dgamma, real* __restrict__ dbeta, int chunks, real eps)
{
    const int channel = blockIdx.x, first = channel * chunks;
    double g = 0, g_d = 0;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
        g += sums_g[first + chunk];
        g_d += sums_g_d[first + chunk];
    }
    g = block_sum(g);
    g_d = block_sum(g_d);
    if (threadIdx.x > 0) return;
    dbeta[channel] = (real)g;
    dgamma[channel] = (real)(g_d / sqrt((double)var[channel] + eps));
}

// With given statistics (`constant`) x moves neither mean nor sigma: dx = g gamma / sigma.
KERNEL __launch_bounds__(THREADS)
input_gradient(const real* __restrict__ dy, const real* __restrict__ x, const real* __restrict__ mean,
               const real* __restrict__ var, const real* __restrict__ gamma, const real* __restrict__ beta,
               const real* __restrict__ dgamma, const real* __restrict__ dbeta, real* __restrict__ dx, Cut cut,
               real eps, int with_relu, int constant)
{
    const Share share = share_of(cut);
    if (!share.any) return;
    const Affine affine = affine_of(share, mean, var, gamma, beta, eps);
    Vector<real> of_mean = load(dbeta + share.channel), of_sigma = load(dgamma + share.channel);
    const Vector<real> variance = load(var + share.channel);
    const real count = (real)cut.pixels;
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) {
        of_mean.of[v] /= count;                                             // mean of g
        of_sigma.of[v] /= count * sqrt(variance.of[v] + eps);               // mean of g x_hat, / sigma
    }
    over_pixels(cut, share, [&](int offset) {
        const Vector<real> value = load(x + offset);
        Vector<real> gradient = load(dy + offset);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) {
            real g = gradient.of[v];
            if (with_relu) g = behind_relu(g, y_of(value.of[v], affine, v));
            if (!constant) g = g - of_mean.of[v] - (value.of[v] - affine.mean.of[v]) * of_sigma.of[v];
            gradient.of[v] = g * affine.scale.of[v];
        }
        store(dx + offset, gradient);
    });
}
