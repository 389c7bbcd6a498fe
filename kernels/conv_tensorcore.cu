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
// when it is copied, and is 0 outside of it. Operands are float, which the tensor cores are given as TF32, or BF16, two
// in a word; sums and results are float32.
//
// A product makes 2*M*N*K FLOP, writes M*N*4 bytes and copies M*K*N/TILE_N + K*N*M/TILE_M numbers into its blocks, most
// of them out of the second-level cache: with 256 x 128 tiles 43 FLOP for a byte in TF32, 85 in BF16; with 128 x 128
// tiles 32 and 64.
//
// A block of 4 or 8 warps owns TILE_M x TILE_N outputs, a warp a part of at most 64 x 64, in registers. K is walked in
// steps of 32 words. STAGES tiles of a and b lie in shared memory: one is multiplied while the next STAGES - 1 are on
// their way, 16 bytes a copy, a chunk. Neighbouring threads copy neighbouring chunks along the channels. A chunk must
// lie in one pixel, so the numbers of channels and filters are multiples of 4 (BF16: 8). They need not be multiples of
// a tile, nor need the pixels: the rest of a tile is filled with zeros. fragments.cuh says how a tile lies in shared
// memory, and how a warp reads from it.
//
// K may be cut into slices (blockIdx.y), whose partial sums conv_slices.cu adds up in a fixed order: that is how a
// weight gradient, with few outputs and millions of pixels, fills a GPU. No atomics, so the same bits in every run.
//
// Sources: NVIDIA, CUTLASS, "Implicit GEMM Convolution"; Markidis et al., NVIDIA tensor core programmability (2018).
// variants: BLOCK=256 TILE_M=256 TILE_N=128 WARPS_M=4 STAGES=3 BF16=0|1
// variants: BLOCK=256 TILE_M=128 TILE_N=128 WARPS_M=4 STAGES=3 BF16=0|1
// variants: BLOCK=128 TILE_M=128 TILE_N=128 WARPS_M=2 STAGES=2 BF16=0|1
// variants: BLOCK=128 TILE_M=256 TILE_N=64 WARPS_M=4 STAGES=2 BF16=0|1
// variants: BLOCK=128 TILE_M=128 TILE_N=64 WARPS_M=2 STAGES=3 BF16=0|1
// variants: BLOCK=128 TILE_M=64 TILE_N=64 WARPS_M=2 STAGES=3 BF16=0|1
#include "common.cuh"
#include "conv.cuh"
#include "fragments.cuh"
#include "pointwise.cuh"
#include "ptx.cuh"
#include "taps.cuh"

#ifndef TILE_M
#define BLOCK 128
#define TILE_M 128
#define TILE_N 128
#define WARPS_M 2
#define STAGES 2
#endif

constexpr int WARPS_N = BLOCK / 32 / WARPS_M;           // warps side by side; WARPS_M of them below one another
constexpr int RESIDENT = 256 / BLOCK;                   // blocks that must find room in a multiprocessor's registers
constexpr int CHUNKS_K = WORDS_K / 4, TILE_K = WORDS_K * PACK;
constexpr int WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N, MMAS_M = WARP_M / 16, MMAS_N = WARP_N / 8;

static_assert(TILE_M % 64 == 0 && TILE_N % 64 == 0 && WARP_M % 16 == 0 && WARP_N % 16 == 0, "no layout for this tile");
static_assert(BLOCK % (TILE_M / CHUNK) == 0 && BLOCK % (TILE_N / CHUNK) == 0, "a line does not fit the threads");
static_assert(WARPS_M * WARPS_N * 32 == BLOCK && RESIDENT >= 1, "warps do not fit the block");
static_assert(STAGES >= 2, "nothing to copy into while a tile is multiplied");

enum Product { FORWARD, TRANSPOSED, TRANSPOSED_STRIDED, WEIGHT_GRAD };

constexpr bool is_transposed(Product p) { return p == TRANSPOSED || p == TRANSPOSED_STRIDED; }

// ---- where copies read

// An index into the image, and its row and column there: that of a window or pixel, or what a tap adds to it. With
// strides, transposed has no index until it knows the window: that of a pixel is the number of its image.
struct Spot { int index, row, column; };

// Of the pixels that PRODUCT walks: those of x, counted from the padding, if it is transposed; else windows over x.
template <Product PRODUCT>
__device__ __forceinline__ Spot spot_of(const Conv& s, Pixel at)
{
    if (at.image >= s.images) return {0, NOWHERE, 0};
    at = is_transposed(PRODUCT) ? from_padding(s, at) : corner_of(s, at);
    if (PRODUCT == TRANSPOSED_STRIDED) return {at.image, at.row, at.column};
    if (PRODUCT == TRANSPOSED)
        return {((at.image * s.out_height + at.row) * s.out_width + at.column) * s.filters, at.row, at.column};
    return {((at.image * s.height + at.row) * s.width + at.column) * s.channels, at.row, at.column};
}

template <Product PRODUCT>
__device__ __forceinline__ Spot spot_of(const Conv& s, Tap tap)
{
    if (tap.i >= s.kernel_h) return {0, NOWHERE, 0};
    const int row = tap.i * s.dilation_h, column = tap.j * s.dilation_w;
    if (PRODUCT == TRANSPOSED) return {tap.channel - (row * s.out_width + column) * s.filters, -row, -column};
    return {tap.channel + (row * s.width + column) * s.channels, row, column};
}

// index counts numbers, of 4 / PACK bytes.
__device__ __forceinline__ void copy(unsigned* to, const unsigned* from, int index, bool inside)
{
    cp_async16(to, reinterpret_cast<const char*>(from) + (long long)index * (4 / PACK), inside);
}

// A chunk of the image at both together, or zeros outside of it.
template <Product PRODUCT>
__device__ __forceinline__ void copy_at(unsigned* to, const unsigned* image, const Conv& s, const Spot& at,
                                        const Spot& tap)
{
    const int height = PRODUCT == TRANSPOSED ? s.out_height : s.height;
    const int width = PRODUCT == TRANSPOSED ? s.out_width : s.width;
    const bool inside = within(at.row + tap.row, height) && within(at.column + tap.column, width);
    copy(to, image, at.index + tap.index, inside);
}

// ---- the matrix product

// Where this thread's next copies begin: its tap of a, fixed where K is pixels; the tile's first k; and where their
// half of the table of spots begins (always 0 where K is taps).
struct Walk { Tap tap; int k, spots; };

// Put the spots of COUNT pixels into the table, from number `first` on.
template <Product PRODUCT, int COUNT>
__device__ __forceinline__ void write_spots(int4* spots, const Conv& s, int first)
{
    const int height = is_transposed(PRODUCT) ? s.height : s.out_height;
    const int width = is_transposed(PRODUCT) ? s.width : s.out_width;
    #pragma unroll 1
    for (int i = threadIdx.x; i < COUNT; i += BLOCK) {
        const Spot spot = spot_of<PRODUCT>(s, pixel_at(first + i, height, width));
        spots[i] = make_int4(spot.index, spot.row, spot.column, 0);
    }
}

template <Product PRODUCT>
__device__ __forceinline__ Walk start(const Conv& s, int4* spots, int k, int m)
{
    if (PRODUCT == WEIGHT_GRAD) {
        write_spots<PRODUCT, TILE_K>(spots, s, k);
        return {tap_at(m + threadIdx.x % (TILE_M / CHUNK) * CHUNK, s.channels, s.kernel_w), k, 0};
    }
    write_spots<PRODUCT, TILE_M>(spots, s, m);
    const int depth = is_transposed(PRODUCT) ? s.filters : s.channels;
    return {tap_at(k + threadIdx.x % CHUNKS_K * CHUNK, depth, s.kernel_w), k, 0};
}

// To be called after a barrier: it reads spots that others wrote. Neighbouring threads copy neighbouring chunks of a
// line.
template <Product PRODUCT>
__device__ __forceinline__ void copy_a(unsigned* tile, const unsigned* a, const Conv& s, const Walk& walk,
                                       const int4* spots)
{
    constexpr bool K_INSIDE = PRODUCT != WEIGHT_GRAD;
    constexpr int CHUNKS = K_INSIDE ? CHUNKS_K : TILE_M / CHUNK, LINES = BLOCK / CHUNKS;
    const int chunk = threadIdx.x % CHUNKS;
    const Spot tap = spot_of<PRODUCT>(s, walk.tap);
    #pragma unroll
    for (int i = 0; i < (K_INSIDE ? TILE_M : TILE_K) / LINES; i++) {
        const int line = threadIdx.x / CHUNKS + i * LINES;
        const int4 at = spots[walk.spots + line];
        unsigned* to = &tile[place<K_INSIDE ? WORDS_K : TILE_M / PACK>(line, chunk)];
        if (PRODUCT == TRANSPOSED_STRIDED) {
            const int index = window_over(s, {at.x, at.y, at.z}, walk.tap);
            copy(to, a, max(index, 0), index >= 0);
        } else {
            copy_at<PRODUCT>(to, a, s, {at.x, at.y, at.z}, tap);
        }
    }
}

// The tile of b: rows of the weight (forward) or of y (weight_grad), or the weight with filters inside (transposed).
template <Product PRODUCT>
__device__ __forceinline__ void copy_b(unsigned* tile, const unsigned* b, const Conv& s, const Walk& walk, int n,
                                       int k_count)
{
    constexpr bool K_INSIDE = is_transposed(PRODUCT);
    constexpr int CHUNKS = K_INSIDE ? CHUNKS_K : TILE_N / CHUNK, LINES = BLOCK / CHUNKS;
    const int chunk = threadIdx.x % CHUNKS, column = K_INSIDE ? walk.tap.channel : n + chunk * CHUNK;
    const int position = K_INSIDE ? walk.tap.i * s.kernel_w + walk.tap.j : 0;
    const bool inside = K_INSIDE ? walk.tap.i < s.kernel_h : column < s.filters;
    const int first = K_INSIDE ? position * s.channels + n : walk.k;
    const int lines = K_INSIDE ? s.channels - n : k_count - walk.k;
    #pragma unroll
    for (int i = 0; i < (K_INSIDE ? TILE_N : TILE_K) / LINES; i++) {
        const int line = threadIdx.x / CHUNKS + i * LINES;
        copy(&tile[place<K_INSIDE ? WORDS_K : TILE_N / PACK>(line, chunk)], b, (first + line) * s.filters + column,
             inside && line < lines);
    }
}

template <Product PRODUCT>
__device__ __forceinline__ void advance(Walk& walk, const Conv& s, int4* spots)
{
    walk.k += TILE_K;
    if (PRODUCT != WEIGHT_GRAD) {
        advance(walk.tap, TILE_K, is_transposed(PRODUCT) ? s.filters : s.channels, s.kernel_w);
        return;
    }
    walk.spots ^= TILE_K;               // the other half, which everybody has read before the last barrier
    write_spots<PRODUCT, TILE_K>(spots + walk.spots, s, walk.k);
}

// sums += tile of a times tile of b, for this warp's part.
template <Product PRODUCT>
__device__ __forceinline__ void multiply(float (&sums)[MMAS_M][MMAS_N][4], const unsigned* tile_a,
                                         const unsigned* tile_b)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Part<PRODUCT != WEIGHT_GRAD, TILE_M> left = {tile_a, warp % WARPS_M * WARP_M, lane};
    const Part<is_transposed(PRODUCT), TILE_N> right = {tile_b, warp / WARPS_M * WARP_N, lane};
    #pragma unroll
    for (int step = 0; step < WORDS_K / 8; step++) {
        unsigned b[MMAS_N / 2][4];
        #pragma unroll
        for (int j = 0; j < MMAS_N / 2; j++) right.template read<false>(b[j], 16 * j, step);
        #pragma unroll
        for (int i = 0; i < MMAS_M; i++) {
            unsigned a[4];
            left.template read<true>(a, 16 * i, step);
            #pragma unroll
            for (int j = 0; j < MMAS_N; j++) {
                const unsigned column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                mma(sums[i][j], a, column);
            }
        }
    }
}

// The sums over this block's slice of K, slice_k long, for its tile of (M, N) at (m, n).
template <Product PRODUCT>
__device__ __forceinline__ void product(float (&sums)[MMAS_M][MMAS_N][4], const unsigned* a,
                                        const unsigned* b, const Conv& s, int m, int n, int k_count, int slice_k)
{
    extern __shared__ __align__(16) unsigned shared[];
    constexpr int A_SIZE = TILE_M * WORDS_K, STAGE_SIZE = A_SIZE + TILE_N * WORDS_K;
    int4* spots = reinterpret_cast<int4*>(&shared[STAGES * STAGE_SIZE]);
    const int k_first = blockIdx.y * slice_k, k_end = min(k_count, k_first + slice_k);
    const int tiles = (k_end - k_first + TILE_K - 1) / TILE_K;
    Walk walk = start<PRODUCT>(s, spots, k_first, m);
    auto copy_tile = [&](int stage) {
        unsigned* tile = &shared[stage * STAGE_SIZE];
        copy_b<PRODUCT>(tile + A_SIZE, b, s, walk, n, k_count);
        copy_a<PRODUCT>(tile, a, s, walk, spots);
        advance<PRODUCT>(walk, s, spots);
    };
    for (int stage = 0; stage < STAGES - 1; stage++) {
        __syncthreads();                                // the spots are there
        if (stage < tiles) copy_tile(stage);
        cp_async_commit();
    }
    int full = 0;                                       // the stage to multiply; the one before it is free again
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<STAGES - 2>();                    // my copies of this tile are there ...
        __syncthreads();                                // ... and everybody's; and everybody has read the last tile
        if (tile + STAGES - 1 < tiles) copy_tile(full == 0 ? STAGES - 1 : full - 1);
        cp_async_commit();
        multiply<PRODUCT>(sums, &shared[full * STAGE_SIZE], &shared[full * STAGE_SIZE + A_SIZE]);
        full = full + 1 == STAGES ? 0 : full + 1;
    }
}

// ---- the kernels: which tile is mine, the product, and where its numbers go

__device__ __forceinline__ int tile_m(int n_count) { return blockIdx.x / ((n_count + TILE_N - 1) / TILE_N) * TILE_M; }
__device__ __forceinline__ int tile_n(int n_count) { return blockIdx.x % ((n_count + TILE_N - 1) / TILE_N) * TILE_N; }

// What a column of the product adds to the place where its row begins, and the channel whose bias it gets.
struct Column { int offset, channel; };

// Store this warp's sums of rows below m_count and columns below n_count [+ bias] [then ReLU]: that of a row and a
// column goes to out[row_at(row) + column_at(column).offset]. Two neighbouring columns at a time: 4 lanes write 32
// bytes side by side.
template <class RowAt, class ColumnAt>
__device__ __forceinline__ void store(const float (&sums)[MMAS_M][MMAS_N][4], float* out, int m, int n, int m_count,
                                      int n_count, const float* bias, int with_relu, RowAt row_at, ColumnAt column_at)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    m += warp % WARPS_M * WARP_M + g;
    n += warp / WARPS_M * WARP_N + 2 * t;
    int rows[2 * MMAS_M];
    #pragma unroll
    for (int i = 0; i < 2 * MMAS_M; i++) rows[i] = row_at(min(m + 8 * i, m_count - 1));     // later ones: not stored
    #pragma unroll
    for (int j = 0; j < MMAS_N; j++) {
        if (n + 8 * j >= n_count) break;
        const Column column = column_at(n + 8 * j);
        const float2 added = bias ? *reinterpret_cast<const float2*>(bias + column.channel) : make_float2(0, 0);
        #pragma unroll
        for (int i = 0; i < 2 * MMAS_M; i++) {
            const float* pair = &sums[i / 2][j][i % 2 * 2];
            float2 value = make_float2(pair[0] + added.x, pair[1] + added.y);
            if (with_relu) value = make_float2(relu_of(value.x), relu_of(value.y));
            if (m + 8 * i < m_count) *reinterpret_cast<float2*>(out + rows[i] + column.offset) = value;
        }
    }
}

// y = A x [+ bias] [then ReLU]; with several slices y is (slices, pixels, filters), and has neither.
KERNEL __launch_bounds__(BLOCK, RESIDENT)
conv_forward(const unsigned* __restrict__ x, const unsigned* __restrict__ weight, const float* __restrict__ bias,
             float* __restrict__ y, Conv s, int with_bias, int with_relu, int slice_k)
{
    const int m_count = s.images * s.out_height * s.out_width, n_count = s.filters;
    const int m = tile_m(n_count), n = tile_n(n_count);
    float sums[MMAS_M][MMAS_N][4] = {};
    product<FORWARD>(sums, x, weight, s, m, n, s.kernel_h * s.kernel_w * s.channels, slice_k);
    store(sums, y + (size_t)blockIdx.y * m_count * n_count, m, n, m_count, n_count, with_bias ? bias : nullptr,
          with_relu, [&](int row) { return row * n_count; }, [](int column) { return Column{column, column}; });
}

// x = A^T y [+ bias]; with several slices x is (slices, pixels, channels), without bias.
//
// Windows that tile the image side by side need no gathering: each makes its own patch_h x patch_w pixels from its own
// filters alone. That is a 1 x 1 convolution, with patch_h*patch_w*C channels, whose numbers are stored as patches:
// s is the shape of that 1 x 1 convolution. Otherwise patch_h = patch_w = 1.
KERNEL __launch_bounds__(BLOCK, RESIDENT)
conv_transposed(const unsigned* __restrict__ y, const unsigned* __restrict__ weight, const float* __restrict__ bias,
                float* __restrict__ x, Conv s, int patch_h, int patch_w, int with_bias, int slice_k)
{
    const int m_count = s.images * s.height * s.width, n_count = s.channels, channels = n_count / (patch_h * patch_w);
    const int m = tile_m(n_count), n = tile_n(n_count), k_count = s.kernel_h * s.kernel_w * s.filters;
    float sums[MMAS_M][MMAS_N][4] = {};
    if (s.stride_h == 1 && s.stride_w == 1)
        product<TRANSPOSED>(sums, y, weight, s, m, n, k_count, slice_k);
    else
        product<TRANSPOSED_STRIDED>(sums, y, weight, s, m, n, k_count, slice_k);
    const bool patched = patch_h * patch_w > 1;
    store(sums, x + (size_t)blockIdx.y * m_count * n_count, m, n, m_count, n_count, with_bias ? bias : nullptr, 0,
          [&](int row) {                                // the first pixel of its patch, or the pixel itself
              return (patched ? row / s.width * patch_h * s.width * patch_w + row % s.width * patch_w : row) * channels;
          },
          [&](int column) {                             // a pixel of the patch, and a channel
              const Tap at = tap_at(column, channels, patch_w);
              return Column{(at.i * s.width * patch_w + at.j) * channels + at.channel, at.channel};
          });
}

// dw = the gradient of <y, A x> with respect to the weight; with several slices dw is (slices, KH, KW, C, F).
KERNEL __launch_bounds__(BLOCK, RESIDENT)
conv_weight_grad(const unsigned* __restrict__ x, const unsigned* __restrict__ y, float* __restrict__ dw, Conv s,
                 int slice_k)
{
    const int m_count = s.kernel_h * s.kernel_w * s.channels, n_count = s.filters;
    const int m = tile_m(n_count), n = tile_n(n_count);
    float sums[MMAS_M][MMAS_N][4] = {};
    product<WEIGHT_GRAD>(sums, x, y, s, m, n, s.images * s.out_height * s.out_width, slice_k);
    store(sums, dw + (size_t)blockIdx.y * m_count * n_count, m, n, m_count, n_count, nullptr, 0,
          [&](int row) { return row * n_count; }, [](int column) { return Column{column, column}; });
}
