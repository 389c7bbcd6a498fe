// Convolution, rung 4: implicit GEMM on tensor cores, fed by asynchronous copies that run while the last tile is
// multiplied.
//
// needs sm_80
//
// The three products of a convolution are three matrix products out (M, N) = a (M, K) b (K, N):
//
//                  M                  N            K                   a                        b
//     forward      pixels of y        filters      (i, j, channel)     x under the windows      weight
//     transposed   pixels of x        channels     (i, j, filter)      y of windows over it     weight, transposed
//     weight_grad  (i, j, channel)    filters      pixels of y         x under the windows      y
//
// where (i, j) is a position in the kernel. The column matrix a is never stored: an element is looked up in the image
// when it is copied (taps.cuh: `under_window`, `window_over`), and is 0 outside of it. A product makes 2*M*N*K FLOP,
// writes M*N*4 bytes and copies (M*K*N/TILE_N + K*N*M/TILE_M) * 4 bytes into its blocks: 32 FLOP for each byte copied
// with 128 x 128 tiles, and most of them come out of the second-level cache. Operands are float32 in memory, rounded to
// TF32 (or BF16, -DBF16=1) on the way into the tensor cores, which add up in float32.
//
// A block of 4 warps owns TILE_M x TILE_N outputs, a warp a quarter of them, (TILE_M/2) x (TILE_N/2), in registers: as
// 16 x 8 matrices of which each lane holds 4 numbers. K is walked in steps of TILE_K. STAGES tiles of a and b lie in
// shared memory: one is multiplied while the next STAGES - 1 are on their way, 16 bytes a copy. Neighbouring threads
// copy neighbouring 16 bytes along the channels: 128 bytes of a row with K inside, TILE_M*4 or TILE_N*4 with K outside.
// So the numbers of channels and filters must be multiples of 4. They need not be multiples of a tile, nor need the
// pixels: the rest of a tile is filled with zeros.
//
// A lane owns elements k = 2t and 2t + 1 of each 8 of K, t = lane % 4. (The order within K is ours, if it is the same
// for a and b; so both precisions read the same pairs.) Two layouts of a tile, by the index that lies contiguous:
//
//     K inside    [rows][TILE_K]    a of forward and transposed, b of transposed: a pair is one 8-byte read
//     K outside   [TILE_K][rows]    b of forward and weight_grad, a of weight_grad: a pair is two 4-byte reads
//
// Shared memory has 32 banks of 4 bytes. Plain rows of 128 bytes or more would put all rows of a column into one bank,
// so the 16-byte chunks of a row are exchanged: chunk c lies at c ^ 2r. Counted for TILE_K = 32: K inside, r = row % 4,
// the 16 lanes of one half of a warp read rows g = 0..3, at chunks 2s and 2s + 1, which lie at (2s ^ 2g) and
// (2s ^ 2g) + 1: 4 x 2 different chunks, all 32 banks once. K outside, r = k / 2 % 4 = t: the 32 lanes read 4 rows at
// 2 neighbouring chunks each, again 8 different chunks. Copies write 8 chunks of a row, in any order: all banks once.
//
// K may be cut into slices (blockIdx.y), whose partial sums conv_slices.cu adds up in a fixed order: that is how a
// weight gradient, with few outputs and millions of pixels, fills a GPU. No atomics, so the same bits in every run.
//
// Sources: NVIDIA, CUTLASS, "Implicit GEMM Convolution"; Markidis et al., NVIDIA tensor core programmability (2018).
// variants: TILE_M=128 TILE_N=128 TILE_K=32 STAGES=2 BF16=0; TILE_M=128 TILE_N=128 TILE_K=32 STAGES=2 BF16=1
// variants: TILE_M=128 TILE_N=64 TILE_K=32 STAGES=3 BF16=0; TILE_M=128 TILE_N=64 TILE_K=32 STAGES=3 BF16=1
// variants: TILE_M=64 TILE_N=64 TILE_K=32 STAGES=3 BF16=0; TILE_M=64 TILE_N=64 TILE_K=32 STAGES=3 BF16=1
#include "common.cuh"
#include "conv.cuh"
#include "pointwise.cuh"
#include "ptx.cuh"
#include "taps.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128
#define TILE_K 32
#define STAGES 2
#define BF16 0
#endif

constexpr int BLOCK = 128;                              // threads: 2 x 2 warps
constexpr int K_CHUNKS = TILE_K / 4, STEP = BF16 ? 16 : 8;  // 16-byte chunks of a row of K; what one mma takes of K
constexpr int WARP_M = TILE_M / 2, WARP_N = TILE_N / 2, MMAS_M = WARP_M / 16, MMAS_N = WARP_N / 8;

static_assert(TILE_M % 32 == 0 && TILE_N % 32 == 0 && TILE_K % 32 == 0 && STAGES >= 2, "a tile that has no layout");

enum Product { FORWARD, TRANSPOSED, WEIGHT_GRAD };

// ---- tiles in shared memory

template <int WIDTH>
__device__ __forceinline__ int place(int row, int chunk, int r) { return row * WIDTH + (chunk ^ 2 * (r % 4)) * 4; }

// Where a 16-byte chunk of a tile lies. K inside: of row `row`, elements 4 * chunk of K; K outside: of row `row` of K.
__device__ __forceinline__ int inside_at(int row, int chunk) { return place<TILE_K>(row, chunk, row); }

template <int ROWS>
__device__ __forceinline__ int outside_at(int row, int chunk) { return place<ROWS>(row, chunk, row / 2); }

// Elements k and k + 1 of a row; k is even.
template <bool K_INSIDE, int ROWS>
__device__ __forceinline__ float2 pair(const float* tile, int row, int k)
{
    if (K_INSIDE) return *reinterpret_cast<const float2*>(&tile[inside_at(row, k / 4) + k % 4]);
    const float* first = &tile[outside_at<ROWS>(k, row / 4) + row % 4];     // k + 1 is exchanged as k is
    return make_float2(first[0], first[ROWS]);
}

__device__ __forceinline__ void copy(float* to, const float* from, int index)
{
    cp_async16(to, from + (index < 0 ? 0 : index), index >= 0);
}

// ---- the matrix product

struct Walk { Tap tap; Pixel pixel; int k; };           // where a thread's next copies begin

template <Product PRODUCT>
__device__ __forceinline__ Walk start(const Conv& s, int k, int m)
{
    if (PRODUCT == WEIGHT_GRAD) {
        const int chunk = threadIdx.x % (TILE_M / 4), row = threadIdx.x / (TILE_M / 4);
        return {tap_at(m + 4 * chunk, s.channels, s.kernel_w), pixel_at(k + row, s.out_height, s.out_width), k};
    }
    const int depth = PRODUCT == FORWARD ? s.channels : s.filters, chunk = threadIdx.x % K_CHUNKS;
    return {tap_at(k + 4 * chunk, depth, s.kernel_w), {0, 0, 0}, k};
}

// The tile of a. Its rows are pixels with K inside, each thread at one tap; or of K outside, each thread at one of M.
template <Product PRODUCT>
__device__ __forceinline__ void copy_a(float* tile, const float* a, const Conv& s, Walk& walk, const int4* pixels)
{
    if (PRODUCT == WEIGHT_GRAD) {
        constexpr int CHUNKS = TILE_M / 4, ROWS = BLOCK / CHUNKS;       // a row of K, and how many are copied at a time
        const int chunk = threadIdx.x % CHUNKS;
        #pragma unroll
        for (int i = 0; i < TILE_K / ROWS; i++) {
            const int row = threadIdx.x / CHUNKS + i * ROWS;
            copy(&tile[outside_at<TILE_M>(row, chunk)], a, under_window(s, corner_of(s, walk.pixel), walk.tap));
            advance(walk.pixel, ROWS, s.out_height, s.out_width);
        }
        return;
    }
    const int chunk = threadIdx.x % K_CHUNKS;
    #pragma unroll
    for (int i = 0; i < TILE_M * K_CHUNKS / BLOCK; i++) {
        const int row = threadIdx.x / K_CHUNKS + i * (BLOCK / K_CHUNKS);
        const int4 at = pixels[row];
        const Pixel pixel = {at.x, at.y, at.z};
        const int index = PRODUCT == FORWARD ? under_window(s, pixel, walk.tap) : window_over(s, pixel, walk.tap);
        copy(&tile[inside_at(row, chunk)], a, index);
    }
}

// The tile of b: rows of the weight (forward) or of y (weight_grad), or the weight with filters inside (transposed).
template <Product PRODUCT>
__device__ __forceinline__ void copy_b(float* tile, const float* b, const Conv& s, const Walk& walk, int n, int k_count)
{
    if (PRODUCT == TRANSPOSED) {
        const int chunk = threadIdx.x % K_CHUNKS, position = walk.tap.i * s.kernel_w + walk.tap.j;
        #pragma unroll
        for (int i = 0; i < TILE_N * K_CHUNKS / BLOCK; i++) {
            const int row = threadIdx.x / K_CHUNKS + i * (BLOCK / K_CHUNKS);
            const bool inside = walk.tap.i < s.kernel_h && n + row < s.channels;
            const int index = inside ? (position * s.channels + n + row) * s.filters + walk.tap.channel : -1;
            copy(&tile[inside_at(row, chunk)], b, index);
        }
        return;
    }
    constexpr int CHUNKS = TILE_N / 4;
    const int chunk = threadIdx.x % CHUNKS, column = n + 4 * chunk;
    #pragma unroll
    for (int i = 0; i < TILE_K * CHUNKS / BLOCK; i++) {
        const int row = threadIdx.x / CHUNKS + i * (BLOCK / CHUNKS);
        const bool inside = walk.k + row < k_count && column < s.filters;
        copy(&tile[outside_at<TILE_N>(row, chunk)], b, inside ? (walk.k + row) * s.filters + column : -1);
    }
}

template <Product PRODUCT>
__device__ __forceinline__ void next(Walk& walk, const Conv& s)
{
    walk.k += TILE_K;
    if (PRODUCT == FORWARD) advance(walk.tap, TILE_K, s.channels, s.kernel_w);
    if (PRODUCT == TRANSPOSED) advance(walk.tap, TILE_K, s.filters, s.kernel_w);
}

// The fragments of one mma: rows `row` and `row + 8` of a, row `row` of b, at this lane's elements of K.
template <bool K_INSIDE>
__device__ __forceinline__ void fragment_a(unsigned (&a)[4], const float* tile, int row, int k)
{
    const float2 upper = pair<K_INSIDE, TILE_M>(tile, row, k), lower = pair<K_INSIDE, TILE_M>(tile, row + 8, k);
#if BF16
    const float2 upper2 = pair<K_INSIDE, TILE_M>(tile, row, k + 8);
    const float2 lower2 = pair<K_INSIDE, TILE_M>(tile, row + 8, k + 8);
    a[0] = pack_bf16(upper.x, upper.y);
    a[1] = pack_bf16(lower.x, lower.y);
    a[2] = pack_bf16(upper2.x, upper2.y);
    a[3] = pack_bf16(lower2.x, lower2.y);
#else
    a[0] = to_tf32(upper.x);
    a[1] = to_tf32(lower.x);
    a[2] = to_tf32(upper.y);
    a[3] = to_tf32(lower.y);
#endif
}

template <bool K_INSIDE>
__device__ __forceinline__ void fragment_b(unsigned (&b)[2], const float* tile, int row, int k)
{
    const float2 first = pair<K_INSIDE, TILE_N>(tile, row, k);
#if BF16
    const float2 second = pair<K_INSIDE, TILE_N>(tile, row, k + 8);
    b[0] = pack_bf16(first.x, first.y);
    b[1] = pack_bf16(second.x, second.y);
#else
    b[0] = to_tf32(first.x);
    b[1] = to_tf32(first.y);
#endif
}

// sums += tile of a times tile of b, for this warp's quarter.
template <Product PRODUCT>
__device__ __forceinline__ void multiply(float (&sums)[MMAS_M][MMAS_N][4], const float* tile_a, const float* tile_b)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row_a = warp / 2 * WARP_M + g, row_b = warp % 2 * WARP_N + g;
    // unrolled, BF16 with K outside, whose pairs are 4 reads, would hold all of a thread's 255 registers
    constexpr int UNROLLED = PRODUCT == WEIGHT_GRAD && BF16 ? 1 : TILE_K / STEP;
    #pragma unroll UNROLLED
    for (int k = 0; k < TILE_K; k += STEP) {
        unsigned b[MMAS_N][2];
        #pragma unroll
        for (int j = 0; j < MMAS_N; j++) fragment_b<PRODUCT == TRANSPOSED>(b[j], tile_b, row_b + 8 * j, k + 2 * t);
        #pragma unroll
        for (int i = 0; i < MMAS_M; i++) {
            unsigned a[4];
            fragment_a<PRODUCT != WEIGHT_GRAD>(a, tile_a, row_a + 16 * i, k + 2 * t);
            #pragma unroll
            for (int j = 0; j < MMAS_N; j++) {
#if BF16
                mma_m16n8k16_bf16(sums[i][j], a, b[j]);
#else
                mma_m16n8k8_tf32(sums[i][j], a, b[j]);
#endif
            }
        }
    }
}

// The sums over this block's slice of K, slice_k long, for its tile of (M, N) at (m, n).
template <Product PRODUCT>
__device__ __forceinline__ void product(float (&sums)[MMAS_M][MMAS_N][4], const float* a, const float* b, const Conv& s,
                                        int m, int n, int k_count, int slice_k)
{
    extern __shared__ __align__(16) float shared[];
    constexpr int A_SIZE = TILE_M * TILE_K, STAGE_SIZE = A_SIZE + TILE_N * TILE_K;
    int4* pixels = reinterpret_cast<int4*>(&shared[STAGES * STAGE_SIZE]);   // image, row, column of the rows of a
    if (PRODUCT != WEIGHT_GRAD) {
        for (int row = threadIdx.x; row < TILE_M; row += BLOCK) {
            const bool windows = PRODUCT == FORWARD;
            const int height = windows ? s.out_height : s.height, width = windows ? s.out_width : s.width;
            const Pixel p = pixel_at(m + row, height, width);
            const Pixel at = windows ? corner_of(s, p) : from_padding(s, p);
            pixels[row] = make_int4(at.image, at.row, at.column, 0);
        }
        __syncthreads();
    }
    const int k_first = blockIdx.y * slice_k, k_end = min(k_count, k_first + slice_k);
    const int tiles = (k_end - k_first + TILE_K - 1) / TILE_K;
    Walk walk = start<PRODUCT>(s, k_first, m);
    auto copy_tile = [&](int stage) {
        float* tile = &shared[stage * STAGE_SIZE];
        copy_b<PRODUCT>(tile + A_SIZE, b, s, walk, n, k_count);
        copy_a<PRODUCT>(tile, a, s, walk, pixels);
        next<PRODUCT>(walk, s);
    };
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < tiles) copy_tile(stage);
        cp_async_commit();
    }
    int full = 0, empty = STAGES - 1;                   // the stage to multiply, the stage to fill
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<STAGES - 2>();                    // my copies of this tile are there ...
        __syncthreads();                                // ... and everybody's; and everybody has read the last tile
        if (tile + STAGES - 1 < tiles) copy_tile(empty);
        cp_async_commit();
        multiply<PRODUCT>(sums, &shared[full * STAGE_SIZE], &shared[full * STAGE_SIZE + A_SIZE]);
        full = full + 1 == STAGES ? 0 : full + 1;
        empty = empty + 1 == STAGES ? 0 : empty + 1;
    }
}

// ---- the kernels: which tile is mine, the product, and where its numbers go

__device__ __forceinline__ int tile_m(int n_count) { return blockIdx.x / ((n_count + TILE_N - 1) / TILE_N) * TILE_M; }
__device__ __forceinline__ int tile_n(int n_count) { return blockIdx.x % ((n_count + TILE_N - 1) / TILE_N) * TILE_N; }

// Hand two neighbouring sums at a time to store(m, n, float2): 4 lanes write one 32-byte sector.
template <class Store>
__device__ __forceinline__ void each_pair(const float (&sums)[MMAS_M][MMAS_N][4], int m, int n, int m_count,
                                          int n_count, Store store)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    m += warp / 2 * WARP_M + g;
    n += warp % 2 * WARP_N + 2 * t;
    #pragma unroll
    for (int j = 0; j < MMAS_N; j++) {
        #pragma unroll
        for (int i = 0; i < MMAS_M; i++) {
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = m + 16 * i + 8 * half, column = n + 8 * j;
                if (row < m_count && column < n_count)
                    store(row, column, make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]));
            }
        }
    }
}

__device__ __forceinline__ void store_pair(float* y, float2 value) { *reinterpret_cast<float2*>(y) = value; }
__device__ __forceinline__ float2 load_pair(const float* x) { return *reinterpret_cast<const float2*>(x); }

// y = A x [+ bias] [then ReLU]; with several slices y is (slices, pixels, filters), and has neither.
KERNEL __launch_bounds__(BLOCK, 2)
conv_forward(const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
             float* __restrict__ y, Conv s, int with_bias, int with_relu, int slice_k)
{
    const int m_count = s.images * s.out_height * s.out_width, n_count = s.filters;
    const int m = tile_m(n_count), n = tile_n(n_count);
    float sums[MMAS_M][MMAS_N][4] = {};
    product<FORWARD>(sums, x, weight, s, m, n, s.kernel_h * s.kernel_w * s.channels, slice_k);
    float* slice = y + (size_t)blockIdx.y * m_count * n_count;
    each_pair(sums, m, n, m_count, n_count, [&](int row, int column, float2 sum) {
        if (with_bias) {
            const float2 b = load_pair(bias + column);
            sum = make_float2(sum.x + b.x, sum.y + b.y);
        }
        if (with_relu) sum = make_float2(relu_of(sum.x), relu_of(sum.y));
        store_pair(&slice[(size_t)row * n_count + column], sum);
    });
}

// x = A^T y [+ bias]; with several slices x is (slices, pixels, channels), without bias.
//
// Windows that tile the image side by side need no gathering: each makes its own patch_h x patch_w pixels from its own
// filters alone. That is a 1 x 1 convolution, with patch_h*patch_w*C channels, whose numbers are stored as patches:
// s is the shape of that 1 x 1 convolution. Otherwise patch_h = patch_w = 1.
KERNEL __launch_bounds__(BLOCK, 2)
conv_transposed(const float* __restrict__ y, const float* __restrict__ weight, const float* __restrict__ bias,
                float* __restrict__ x, Conv s, int patch_h, int patch_w, int with_bias, int slice_k)
{
    const int m_count = s.images * s.height * s.width, n_count = s.channels, channels = n_count / (patch_h * patch_w);
    const int m = tile_m(n_count), n = tile_n(n_count);
    float sums[MMAS_M][MMAS_N][4] = {};
    product<TRANSPOSED>(sums, y, weight, s, m, n, s.kernel_h * s.kernel_w * s.filters, slice_k);
    float* slice = x + (size_t)blockIdx.y * m_count * n_count;
    each_pair(sums, m, n, m_count, n_count, [&](int row, int column, float2 sum) {
        const Tap at = tap_at(column, channels, patch_w);               // of the patch, and the channel in x
        if (with_bias) {
            const float2 b = load_pair(bias + at.channel);
            sum = make_float2(sum.x + b.x, sum.y + b.y);
        }
        if (patch_h * patch_w > 1) {
            const int line = row / s.width, w = row % s.width;          // line: of all images, one below the other
            const size_t pixel = ((size_t)line * patch_h + at.i) * s.width * patch_w + w * patch_w + at.j;
            store_pair(&slice[pixel * channels + at.channel], sum);
        } else {
            store_pair(&slice[(size_t)row * n_count + column], sum);
        }
    });
}

// dw = the gradient of <y, A x> with respect to the weight; with several slices dw is (slices, KH, KW, C, F).
KERNEL __launch_bounds__(BLOCK, 2)
conv_weight_grad(const float* __restrict__ x, const float* __restrict__ y, float* __restrict__ dw, Conv s, int slice_k)
{
    const int m_count = s.kernel_h * s.kernel_w * s.channels, n_count = s.filters;
    const int m = tile_m(n_count), n = tile_n(n_count);
    float sums[MMAS_M][MMAS_N][4] = {};
    product<WEIGHT_GRAD>(sums, x, y, s, m, n, s.images * s.out_height * s.out_width, slice_k);
    float* slice = dw + (size_t)blockIdx.y * m_count * n_count;
    each_pair(sums, m, n, m_count, n_count, [&](int row, int column, float2 sum) {
        store_pair(&slice[(size_t)row * n_count + column], sum);
    });
}
