// The Dice loss from logits (pixels, classes), with its gradient: 1 - (2 I + ε) / (S + ε) for each class, I = Σ w p t,
// S = Σ w p + Σ w t over the pixels; then the mean over the classes present. p is the softmax of a pixel's logits, t
// whether the class is the pixel's; or p is the sigmoid of each logit, t a fraction.
//
// A group of lanes owns a pixel (loss.cuh). The gradient needs I and S, so there are three launches: dice_sums adds up,
// a block its pixels; dice_loss, one block, adds the blocks' sums in a fixed order; dice writes. No atomics: same bits.
//
// Bytes a pixel, for K classes in float: 4 + 4 K, then 4 + 8 K, where 8 K is one copy of the logits (fractions: 8 K,
// then 12 K). Weights add 4 a pass. About 30 FLOP a class and pass beside two exponentials: bound by memory.
#include "common.cuh"
#include "block_sum.cuh"
#include "loss.cuh"
#include "pointwise.cuh"

// I, S and whether the class is present, of each block's pixels: (classes, blocks). blockIdx.y takes 32 classes each,
// so that a lane has one class, and its sums are registers. Then the block adds the lanes of the same class, pairwise.
KERNEL __launch_bounds__(THREADS, SHARING)
dice_sums(const real* __restrict__ logits, const int* __restrict__ ids, const real* __restrict__ fractions,
          const real* __restrict__ weights, double* __restrict__ overlaps, double* __restrict__ totals,
          int* __restrict__ found, Loss loss)
{
    __shared__ double overlap_of[THREADS], total_of[THREADS];
    __shared__ int present_of[THREADS];
    const int lane = threadIdx.x % loss.group, member = threadIdx.x / loss.group, width = THREADS / loss.group;
    const int k = blockIdx.y * loss.group + lane;
    const int mine = k < loss.classes ? k : 0;      // a class to work along on
    double overlap = 0, total = 0;
    bool present = false;
    for (unsigned first = blockIdx.x * width; first < (unsigned)loss.pixels; first += gridDim.x * width) {
        bool valid = first + member < (unsigned)loss.pixels && k < loss.classes;
        const int pixel = first + member < (unsigned)loss.pixels ? first + member : first;
        const real* z = logits + pixel * loss.classes;
        real p, t;
        bool predicted;
        if (loss.of_ids) {
            const int id = ids[pixel];
            valid = valid && id != loss.ignore;
            t = id == k;
            const Softmax s = group_softmax(z, lane, loss);
            p = exp(z[mine] - s.top) / s.sum;
            int winner = loss.classes;              // the first of the largest
            #pragma unroll 1
            for (int j = lane; j < loss.classes; j += loss.group) winner = z[j] == s.top && j < winner ? j : winner;
            predicted = group_min(winner, loss.group) == k;
        } else {
            t = fractions[pixel * loss.classes + mine];
            valid = valid && t != (real)loss.ignore;
            p = sigmoid_of(z[mine]);
            predicted = z[mine] > 0;
        }
        if (valid) {
            const real w = loss.weighted ? weights[pixel] : 1;
            overlap += w * p * t;
            total += w * p + w * t;
            present = present || w * t > 0 || (predicted && w > 0);
        }
    }
    overlap_of[threadIdx.x] = overlap;
    total_of[threadIdx.x] = total;
    present_of[threadIdx.x] = present;
    for (int half = THREADS / 2; half >= loss.group; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            overlap_of[threadIdx.x] += overlap_of[threadIdx.x + half];
            total_of[threadIdx.x] += total_of[threadIdx.x + half];
            present_of[threadIdx.x] |= present_of[threadIdx.x + half];
        }
    }
    if (threadIdx.x < loss.group && k < loss.classes) {
        overlaps[k * gridDim.x + blockIdx.x] = overlap_of[threadIdx.x];
        totals[k * gridDim.x + blockIdx.x] = total_of[threadIdx.x];
        found[k * gridDim.x + blockIdx.x] = present_of[threadIdx.x];
    }
}

// From the blocks' sums the loss, and what the gradient needs of each class: ∂loss/∂p = w (offset - slope · t) with
// slope = 2 s / (S + ε), offset = s (2 I + ε) / (S + ε)², s the class's share of the mean. One block, a warp a class;
// then a thread a class, once the sum of the shares is known.
constexpr int DICE_THREADS = 1024;

KERNEL __launch_bounds__(DICE_THREADS)
dice_loss(const double* __restrict__ overlaps, const double* __restrict__ totals, const int* __restrict__ found,
          int blocks, const real* __restrict__ class_weights, double smooth, double* __restrict__ losses,
          real* __restrict__ slopes, real* __restrict__ offsets, bool* __restrict__ present, real* __restrict__ y,
          Loss loss)
{
    const int lane = threadIdx.x % 32;
    for (int k = threadIdx.x / 32; k < loss.classes; k += DICE_THREADS / 32) {
        double overlap = 0, total = 0;
        int any = 0;
        for (int block = lane; block < blocks; block += 32) {
            overlap += overlaps[k * blocks + block];
            total += totals[k * blocks + block];
            any |= found[k * blocks + block];
        }
        overlap = group_sum(overlap, 32);
        total = group_sum(total, 32);
        any = __any_sync(ALL_LANES, any);
        if (lane == 0) {
            const double quotient = (2 * overlap + smooth) / (total + smooth);
            losses[k] = 1 - quotient;
            slopes[k] = (real)(2 / (total + smooth));
            offsets[k] = (real)(quotient / (total + smooth));
            present[k] = any != 0;
        }
    }
    __syncthreads();
    double weight = 0;
    for (int k = threadIdx.x; k < loss.classes; k += DICE_THREADS)
        weight += !present[k] ? 0 : loss.class_weighted ? class_weights[k] : 1;
    weight = block_sum(weight);
    double sum = 0;
    for (int k = threadIdx.x; k < loss.classes; k += DICE_THREADS) {
        const double own = !present[k] ? 0 : loss.class_weighted ? class_weights[k] : 1;
        const double share = weight > 0 ? own / weight : 0;
        sum += share * losses[k];
        slopes[k] *= (real)share;
        offsets[k] *= (real)share;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[0] = (real)sum;
}

// The gradient: with g = ∂loss/∂p, g p (1 - p) through the sigmoid and p (g - Σ_k g_k p_k) through the softmax
KERNEL __launch_bounds__(THREADS, SHARING)
dice(const real* __restrict__ logits, const int* __restrict__ ids, const real* __restrict__ fractions,
     const real* __restrict__ weights, const real* __restrict__ slopes, const real* __restrict__ offsets,
     real* __restrict__ gradient, Loss loss)
{
    const int lane = threadIdx.x % loss.group, member = threadIdx.x / loss.group, width = THREADS / loss.group;
    for (unsigned first = blockIdx.x * width; first < (unsigned)loss.pixels; first += gridDim.x * width) {
        const bool inside = first + member < (unsigned)loss.pixels;
        const int pixel = inside ? first + member : first;
        const real* z = logits + pixel * loss.classes;
        const real w = loss.weighted ? weights[pixel] : 1;
        if (loss.of_ids) {
            const int id = ids[pixel];
            const Softmax s = group_softmax(z, lane, loss);
            const real scale = 1 / s.sum;
            real mean = 0;                          // Σ_k g_k p_k, without w
            #pragma unroll 1
            for (int k = lane; k < loss.classes; k += loss.group)
                mean += exp(z[k] - s.top) * scale * (k == id ? offsets[k] - slopes[k] : offsets[k]);
            mean = group_sum(mean, loss.group);
            #pragma unroll 1
            for (int k = lane; k < loss.classes && inside; k += loss.group) {
                const real p = exp(z[k] - s.top) * scale, g = k == id ? offsets[k] - slopes[k] : offsets[k];
                gradient[pixel * loss.classes + k] = id != loss.ignore ? w * p * (g - mean) : 0;
            }
        } else {
            #pragma unroll 1
            for (int k = lane; k < loss.classes && inside; k += loss.group) {
                const real p = sigmoid_of(z[k]), t = fractions[pixel * loss.classes + k];
                const real g = w * (offsets[k] - slopes[k] * t);
                gradient[pixel * loss.classes + k] = t != (real)loss.ignore ? g * p * (1 - p) : 0;
            }
        }
    }
}
