// Rung 1 of the convolution: the three products by their definitions, one thread an output number. Read this first.
//
//     A x             y[n, oh, ow, f]    = sum over kh, kw, c     of w[kh, kw, c, f] x[n, h, w, c]
//     A transposed y  x[n, h, w, c]      = sum over kh, kw, f     of w[kh, kw, c, f] y[n, oh, ow, f]
//     weight gradient dw[kh, kw, c, f]   = sum over n, oh, ow     of x[n, h, w, c] y[n, oh, ow, f]
//
// Always h = oh * stride_h - pad_h + kh * dilation_h, and w likewise (conv.cuh). All three sums run over the same
// triples (y's number, x's number, weight); they differ in which of the three is fixed. The transpose is a gather: an
// image pixel looks for the windows that it lies in. Nobody adds to a number that is not his own, so no atomics.
//
// FLOP: 2 N OH OW KH KW C F for each product (with a stride, the transpose looks at KH KW places a pixel and uses about
// 1 in stride_h stride_w). Neighbouring threads own neighbouring numbers of the last axis, so a warp writes one run.
// Memory answers in sectors of 32 bytes; a step of the sum is 64 FLOP of a warp (32 multiply-adds of 2), for which it
// reads, in float and with 32 and more channels and filters:
//
//     forward        x at one address, 1 sector     weight, 32 neighbours, 4 sectors      160 bytes    0.4 FLOP/byte
//     weight_grad    x at one address, 1 sector     y, 32 neighbours, 4 sectors           160 bytes    0.4 FLOP/byte
//     transposed     y at one address, 1 sector     weight, 32 rows, 32 sectors          1056 bytes    0.06 FLOP/byte
//
// The transpose's read of the weight is not coalesced: the neighbours own c and c + 1, whose weights lie F numbers
// apart, so that each of the 32 asks for a sector of its own and takes one number of its 8. (With 16 channels two
// pixels share the rows: 16 + 2 sectors, 0.11 FLOP/byte.) The seven steps that follow want the same sectors, if they
// are still in the L1 cache. Compare it with forward: the same loop and the same sum, but for the end of the array at
// which the thread's own index stands. That is the lesson of this file.
//
// All of it comes out of the caches, again and again, and that is what bounds it: rungs 2 and 3 mend it.
#include "common.cuh"
#include "conv.cuh"
#include "pointwise.cuh"

KERNEL __launch_bounds__(THREADS)
forward(const real* __restrict__ x, const real* __restrict__ weight, const real* __restrict__ bias,
        real* __restrict__ y, Conv s, int with_bias, int with_relu)
{
    const int i = thread_index();
    if (i >= s.images * s.out_height * s.out_width * s.filters) return;
    const int f = i % s.filters;
    const int ow = i / s.filters % s.out_width;
    const int oh = i / s.filters / s.out_width % s.out_height;
    const int n = i / s.filters / s.out_width / s.out_height;

    real sum = with_bias ? bias[f] : 0;
    for (int kh = 0; kh < s.kernel_h; kh++) {
        const int h = oh * s.stride_h - s.pad_h + kh * s.dilation_h;
        if (h < 0 || h >= s.height) continue;
        for (int kw = 0; kw < s.kernel_w; kw++) {
            const int w = ow * s.stride_w - s.pad_w + kw * s.dilation_w;
            if (w < 0 || w >= s.width) continue;
            const real* pixel = x + ((n * s.height + h) * s.width + w) * s.channels;
            const real* row = weight + (kh * s.kernel_w + kw) * s.channels * s.filters + f;
            for (int c = 0; c < s.channels; c++) sum += pixel[c] * row[c * s.filters];
        }
    }
    y[i] = with_relu ? relu_of(sum) : sum;
}

// The window along one axis that covers a pixel with its kernel position k, or -1 for none:
// o * stride - pad + k * dilation = pixel.
__device__ __forceinline__ int window_over(int pixel, int k, int stride, int pad, int dilation, int windows)
{
    const int start = pixel + pad - k * dilation;
    return start >= 0 && start % stride == 0 && start / stride < windows ? start / stride : -1;
}

KERNEL __launch_bounds__(THREADS)
transposed(const real* __restrict__ y, const real* __restrict__ weight, const real* __restrict__ bias,
           real* __restrict__ x, Conv s, int with_bias)
{
    const int i = thread_index();
    if (i >= s.images * s.height * s.width * s.channels) return;
    const int c = i % s.channels;
    const int w = i / s.channels % s.width;
    const int h = i / s.channels / s.width % s.height;
    const int n = i / s.channels / s.width / s.height;

    real sum = with_bias ? bias[c] : 0;
    for (int kh = 0; kh < s.kernel_h; kh++) {
        const int oh = window_over(h, kh, s.stride_h, s.pad_h, s.dilation_h, s.out_height);
        if (oh < 0) continue;
        for (int kw = 0; kw < s.kernel_w; kw++) {
            const int ow = window_over(w, kw, s.stride_w, s.pad_w, s.dilation_w, s.out_width);
            if (ow < 0) continue;
            const real* window = y + ((n * s.out_height + oh) * s.out_width + ow) * s.filters;
            const real* row = weight + ((kh * s.kernel_w + kw) * s.channels + c) * s.filters;
            #pragma unroll 2                   // more spills registers for old GPUs
            for (int f = 0; f < s.filters; f++) sum += window[f] * row[f];
        }
    }
    x[i] = sum;
}

// One thread a weight. The sum over an image row is closed before it is added to the whole: less rounding.
KERNEL __launch_bounds__(THREADS)
weight_grad(const real* __restrict__ x, const real* __restrict__ y, real* __restrict__ dw, Conv s)
{
    const int i = thread_index();
    if (i >= s.kernel_h * s.kernel_w * s.channels * s.filters) return;
    const int f = i % s.filters;
    const int c = i / s.filters % s.channels;
    const int kw = i / s.filters / s.channels % s.kernel_w;
    const int kh = i / s.filters / s.channels / s.kernel_w;

    real sum = 0;
    for (int n = 0; n < s.images; n++) {
        for (int oh = 0; oh < s.out_height; oh++) {
            const int h = oh * s.stride_h - s.pad_h + kh * s.dilation_h;
            if (h < 0 || h >= s.height) continue;
            real row = 0;
            for (int ow = 0; ow < s.out_width; ow++) {
                const int w = ow * s.stride_w - s.pad_w + kw * s.dilation_w;
                if (w < 0 || w >= s.width) continue;
                row += x[((n * s.height + h) * s.width + w) * s.channels + c]
                     * y[((n * s.out_height + oh) * s.out_width + ow) * s.filters + f];
            }
            sum += row;
        }
    }
    dw[i] = sum;
}
