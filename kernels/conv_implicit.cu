// Rung 3 of the convolution: implicit GEMM, the three products of rung 2 without storing the column matrix. A block
// computes where in x (or y) an element of it lies while it copies a tile into shared memory (gemm.cuh).
//
//                         rows i                      sum over k                  columns j
//     forward             window (n, oh, ow)          tap (kh, kw, c)             f
//     transposed          pixel (n, h, w)             tap (kh, kw, f)             c
//     weight_grad         tap (kh, kw, c)             window (n, oh, ow)          f
//     transposed_patches  window (n, oh, ow)          f                           (kh, kw, c)
//
// A thread owns THREAD_M x THREAD_N results, a block of 256 threads TILE_M x TILE_N. All operands are channels last, so
// the elements that a tile takes from one pixel (TILE_K channels, or TILE_M in the weight gradient) are one run:
// 16-byte loads, and full sectors of 32 bytes. Rows of a tile are neighbouring pixels, and results of a row
// neighbouring channels: 8 lanes store 128 bytes side by side.
//
// FLOP: 2 N OH OW KH KW C F for each product. Bytes at least: x, y and the weight once, 4 (N H W C + N OH OW F +
// KH KW C F); a tile of 128 x 128 makes 32 FLOP for each byte that it loads, and its neighbours' loads come from the
// cache. transposed of a strided convolution multiplies zeros, for taps that hit no window; where windows lie side by
// side (kernel = stride: the U-Net's 2x2 up-convolution, and 1x1) transposed_patches multiplies none: one plain GEMM,
// whose results are stored where each window lies.
//
// Few tiles would leave most of a GPU idle, so the sum over k can be cut into slices (blockIdx.z): every slice stores
// its own partial result, and conv_slices.cu adds them up in a fixed order. CHANNEL_VECTOR and FILTER_VECTOR say how
// many channels and filters are loaded at once: 16 bytes where these divide C (or F), else 1. They and the tile follow
// from the shape (minunet/convolution/kernels.py).
// variants: real=float TILE_M=128 TILE_N=128 TILE_K=8 THREAD_M=8 THREAD_N=8 CHANNEL_VECTOR=4 FILTER_VECTOR=4
// variants: real=float TILE_M=256 TILE_N=64 TILE_K=8 THREAD_M=8 THREAD_N=8 CHANNEL_VECTOR=4 FILTER_VECTOR=4
// variants: real=float TILE_M=128 TILE_N=64 TILE_K=8 THREAD_M=8 THREAD_N=4 CHANNEL_VECTOR=1|4 FILTER_VECTOR=1|4
// variants: real=float TILE_M=256 TILE_N=32 TILE_K=8 THREAD_M=8 THREAD_N=4 CHANNEL_VECTOR=1|4 FILTER_VECTOR=1|4
// variants: real=float TILE_M=256 TILE_N=8 TILE_K=8 THREAD_M=4 THREAD_N=2 CHANNEL_VECTOR=1|4 FILTER_VECTOR=1|4
// variants: real=float TILE_M=32 TILE_N=64 TILE_K=16 THREAD_M=2 THREAD_N=4 CHANNEL_VECTOR=1|4 FILTER_VECTOR=1|4
// variants: real=float TILE_M=64 TILE_N=32 TILE_K=16 THREAD_M=2 THREAD_N=4 CHANNEL_VECTOR=1|4 FILTER_VECTOR=1|4
// variants: real=float TILE_M=64 TILE_N=8 TILE_K=32 THREAD_M=2 THREAD_N=1 CHANNEL_VECTOR=1|4 FILTER_VECTOR=1|4
// variants: real=double TILE_M=128 TILE_N=64 TILE_K=8 THREAD_M=8 THREAD_N=4 CHANNEL_VECTOR=1|2 FILTER_VECTOR=1|2
// variants: real=double TILE_M=256 TILE_N=32 TILE_K=8 THREAD_M=8 THREAD_N=4 CHANNEL_VECTOR=1|2 FILTER_VECTOR=1|2
// variants: real=double TILE_M=256 TILE_N=8 TILE_K=8 THREAD_M=4 THREAD_N=2 CHANNEL_VECTOR=1|2 FILTER_VECTOR=1|2
// variants: real=double TILE_M=32 TILE_N=64 TILE_K=16 THREAD_M=2 THREAD_N=4 CHANNEL_VECTOR=1|2 FILTER_VECTOR=1|2
// variants: real=double TILE_M=64 TILE_N=32 TILE_K=16 THREAD_M=2 THREAD_N=4 CHANNEL_VECTOR=1|2 FILTER_VECTOR=1|2
// variants: real=double TILE_M=64 TILE_N=8 TILE_K=32 THREAD_M=2 THREAD_N=1 CHANNEL_VECTOR=1|2 FILTER_VECTOR=1|2
#include "common.cuh"
#include "conv.cuh"
#include "gemm.cuh"
#include "pointwise.cuh"
#include "taps.cuh"

#ifndef CHANNEL_VECTOR
#define CHANNEL_VECTOR 1
#define FILTER_VECTOR 1
#endif

__device__ __forceinline__ int weight_rows(const Conv& s) { return s.kernel_h * s.kernel_w * s.channels; }
__device__ __forceinline__ int windows(const Conv& s) { return s.images * s.out_height * s.out_width; }

// ---- the operands of gemm.cuh

struct Columns {                        // forward, left: row = window, k = (kh, kw, c)
    static constexpr int WIDTH = CHANNEL_VECTOR;
    static constexpr bool ALONG_K = true;
    typedef Pixel Row;
    typedef Tap Depth;
    static __device__ __forceinline__ Row row(const Conv& s, int i)
    {
        return corner_of(s, pixel_at(i, s.out_height, s.out_width));
    }
    static __device__ __forceinline__ Depth depth(const Conv& s, int k) { return tap_at(k, s.channels, s.kernel_w); }
    static __device__ __forceinline__ void step(const Conv& s, Depth& tap)
    {
        advance(tap, TILE_K, s.channels, s.kernel_w);
    }
    static __device__ __forceinline__ int offset(const Conv& s, const Row& corner, const Depth& tap)
    {
        return under_window(s, corner, tap);
    }
};

struct ColumnsTransposed {              // weight gradient, left: row = (kh, kw, c), k = window
    static constexpr int WIDTH = CHANNEL_VECTOR;
    static constexpr bool ALONG_K = false;
    typedef Tap Row;
    typedef Pixel Depth;
    static __device__ __forceinline__ Row row(const Conv& s, int i) { return tap_at(i, s.channels, s.kernel_w); }
    static __device__ __forceinline__ Depth depth(const Conv& s, int k)
    {
        return pixel_at(k, s.out_height, s.out_width);
    }
    static __device__ __forceinline__ void step(const Conv& s, Depth& window)
    {
        advance(window, TILE_K, s.out_height, s.out_width);
    }
    static __device__ __forceinline__ int offset(const Conv& s, const Row& tap, const Depth& window)
    {
        return under_window(s, corner_of(s, window), tap);
    }
};

struct Windows {                        // transposed, left: row = pixel, k = (kh, kw, f)
    static constexpr int WIDTH = FILTER_VECTOR;
    static constexpr bool ALONG_K = true;
    typedef Pixel Row;
    typedef Tap Depth;
    static __device__ __forceinline__ Row row(const Conv& s, int i)
    {
        return from_padding(s, pixel_at(i, s.height, s.width));
    }
    static __device__ __forceinline__ Depth depth(const Conv& s, int k) { return tap_at(k, s.filters, s.kernel_w); }
    static __device__ __forceinline__ void step(const Conv& s, Depth& tap)
    {
        advance(tap, TILE_K, s.filters, s.kernel_w);
    }
    static __device__ __forceinline__ int offset(const Conv& s, const Row& pixel, const Depth& tap)
    {
        return window_over(s, pixel, tap);
    }
};

struct WeightTransposed {               // transposed, right: column = c, k = (kh, kw, f)
    static constexpr int WIDTH = FILTER_VECTOR;
    static constexpr bool ALONG_K = true;
    typedef int Row;
    typedef Tap Depth;
    static __device__ __forceinline__ Row row(const Conv&, int j) { return j; }
    static __device__ __forceinline__ Depth depth(const Conv& s, int k) { return tap_at(k, s.filters, s.kernel_w); }
    static __device__ __forceinline__ void step(const Conv& s, Depth& tap)
    {
        advance(tap, TILE_K, s.filters, s.kernel_w);
    }
    static __device__ __forceinline__ int offset(const Conv& s, const Row& c, const Depth& tap)
    {
        const bool inside = c < s.channels && tap.i < s.kernel_h;
        return inside ? ((tap.i * s.kernel_w + tap.j) * s.channels + c) * s.filters + tap.channel : -1;
    }
};

// A stored matrix of F columns, read along f: the weight (KH*KW*C, F) in forward, y (N*OH*OW, F) in the gradient.
template <int (*LENGTH)(const Conv&)>
struct Stored {                         // right: column = f, k = its row
    static constexpr int WIDTH = FILTER_VECTOR;
    static constexpr bool ALONG_K = false;
    typedef int Row;
    typedef int Depth;
    static __device__ __forceinline__ Row row(const Conv&, int j) { return j; }
    static __device__ __forceinline__ Depth depth(const Conv&, int k) { return k; }
    static __device__ __forceinline__ void step(const Conv&, Depth& k) { k += TILE_K; }
    static __device__ __forceinline__ int offset(const Conv& s, const Row& f, const Depth& k)
    {
        return f < s.filters && k < LENGTH(s) ? k * s.filters + f : -1;
    }
};

struct Filters {                        // both operands of transposed_patches have k = f
    static constexpr int WIDTH = FILTER_VECTOR;
    static constexpr bool ALONG_K = true;
    typedef int Depth;
    static __device__ __forceinline__ Depth depth(const Conv&, int k) { return k; }
    static __device__ __forceinline__ void step(const Conv&, Depth& f) { f += TILE_K; }
};

// Windows side by side: as many as touch the image, also those that its edge cuts, which are none of y's.
__device__ __forceinline__ Pixel patch_at(const Conv& s, int i)
{
    return pixel_at(i, (s.height + s.kernel_h - 1) / s.kernel_h, (s.width + s.kernel_w - 1) / s.kernel_w);
}

struct Patches : Filters {              // transposed_patches, left: row = window, kept as its first element, or -1
    typedef int Row;
    static __device__ __forceinline__ Row row(const Conv& s, int i)
    {
        const Pixel window = patch_at(s, i);
        const bool inside = window.image < s.images && window.row < s.out_height && window.column < s.out_width;
        return inside ? ((window.image * s.out_height + window.row) * s.out_width + window.column) * s.filters : -1;
    }
    static __device__ __forceinline__ int offset(const Conv& s, const Row& window, const Depth& f)
    {
        return window >= 0 && f < s.filters ? window + f : -1;
    }
};

struct WeightRows : Filters {           // transposed_patches, right: column = (kh, kw, c)
    typedef int Row;
    static __device__ __forceinline__ Row row(const Conv&, int j) { return j; }
    static __device__ __forceinline__ int offset(const Conv& s, const Row& j, const Depth& f)
    {
        return j < weight_rows(s) && f < s.filters ? j * s.filters + f : -1;
    }
};

// ---- where results go

template <int V>
__device__ __forceinline__ void finish(Vector<real, V>& results, const real* bias, int with_relu)
{
    #pragma unroll
    for (int v = 0; v < V; v++) {
        if (bias) results.of[v] += bias[v];
        if (with_relu) results.of[v] = relu_of(results.of[v]);
    }
}

template <int WIDEST>
struct Matrix {                         // a stored matrix (rows, columns)
    static constexpr int WIDTH = WIDEST;
    real* out;
    const real* bias;                   // of the columns, or none
    int rows, columns, with_relu;

    template <int V>
    __device__ __forceinline__ void put(int i, int j, Vector<real, V> results) const
    {
        if (i >= rows || j >= columns) return;
        finish(results, bias ? bias + j : bias, with_relu);
        store(out + i * columns + j, results);
    }
};

struct Interleaved {                    // windows side by side in x
    static constexpr int WIDTH = CHANNEL_VECTOR;
    real* out;
    const real* bias;
    Conv s;

    template <int V>
    __device__ __forceinline__ void put(int i, int j, Vector<real, V> results) const
    {
        const Pixel window = patch_at(s, i);
        const Tap tap = tap_at(j, s.channels, s.kernel_w);
        const int h = window.row * s.kernel_h + tap.i, w = window.column * s.kernel_w + tap.j;
        if (window.image >= s.images || tap.i >= s.kernel_h || h >= s.height || w >= s.width) return;
        finish(results, bias ? bias + tap.channel : bias, 0);
        const int pixel = (window.image * s.height + h) * s.width + w;
        store(out + pixel * s.channels + tap.channel, results);
    }
};

// ---- the products: block (i, j, slice); out is (slices, ...), bias and ReLU are for a single slice

KERNEL __launch_bounds__(THREADS, RESIDENT)
forward(const real* __restrict__ x, const real* __restrict__ weight, const real* __restrict__ bias,
        real* __restrict__ y, Conv s, int slice_depth, int with_bias, int with_relu)
{
    const int begin = blockIdx.z * slice_depth, end = min(begin + slice_depth, weight_rows(s));
    const int rows = windows(s);
    const Matrix<FILTER_VECTOR> target = {y + blockIdx.z * rows * s.filters, with_bias ? bias : nullptr, rows,
                                          s.filters, with_relu};
    tiled_product<Columns, Stored<weight_rows>>(s, x, weight, begin, end, target);
}

KERNEL __launch_bounds__(THREADS, RESIDENT)
transposed(const real* __restrict__ y, const real* __restrict__ weight, const real* __restrict__ bias,
           real* __restrict__ x, Conv s, int slice_depth, int with_bias)
{
    const int begin = blockIdx.z * slice_depth, end = min(begin + slice_depth, s.kernel_h * s.kernel_w * s.filters);
    const int rows = s.images * s.height * s.width;
    const Matrix<CHANNEL_VECTOR> target = {x + blockIdx.z * rows * s.channels, with_bias ? bias : nullptr, rows,
                                           s.channels, 0};
    tiled_product<Windows, WeightTransposed>(s, y, weight, begin, end, target);
}

KERNEL __launch_bounds__(THREADS, RESIDENT)
transposed_patches(const real* __restrict__ y, const real* __restrict__ weight, const real* __restrict__ bias,
                   real* __restrict__ x, Conv s, int slice_depth, int with_bias)
{
    const int begin = blockIdx.z * slice_depth, end = min(begin + slice_depth, s.filters);
    const Interleaved target = {x + blockIdx.z * s.images * s.height * s.width * s.channels,
                                with_bias ? bias : nullptr, s};
    tiled_product<Patches, WeightRows>(s, y, weight, begin, end, target);
}

KERNEL __launch_bounds__(THREADS, RESIDENT)
weight_grad(const real* __restrict__ x, const real* __restrict__ y, real* __restrict__ dw, Conv s, int slice_depth)
{
    const int begin = blockIdx.z * slice_depth, end = min(begin + slice_depth, windows(s));
    const int rows = weight_rows(s);
    const Matrix<FILTER_VECTOR> target = {dw + blockIdx.z * rows * s.filters, nullptr, rows, s.filters, 0};
    tiled_product<ColumnsTransposed, Stored<windows>>(s, x, y, begin, end, target);
}
