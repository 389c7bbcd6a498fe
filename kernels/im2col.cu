// Rung 2 of the convolution: lay the windows out as rows of a matrix, and let a GEMM multiply.
//
//     columns (windows, KH*KW*C), window (n, oh, ow), kernel position (kh, kw), channel c  =  x[n, h, w, c]
//     A x = columns W        A transposed y = col2im(y W transposed)        weight gradient = columns transposed y
//
// with W (KH*KW*C, F), h = oh * stride_h - pad_h + kh * dilation_h, and w likewise. im2col copies, col2im adds every
// column's number back to the pixel that it came from, as a gather: a pixel collects, no two threads add to one number.
//
// One thread an element of what is written, so writes are one run. Reads are not. im2col: neighbouring threads own
// neighbouring channels, then kernel columns, and the KW*C numbers of a kernel row (no dilation) are one run of x.
// col2im: neighbouring threads own neighbouring channels, then pixels, whose numbers for one kernel position stand in
// rows of windows side by side: runs of C numbers, KH*KW*C apart. For 3x3 windows of 3 channels, in float, a read of a
// warp takes about 6 sectors of 32 bytes in im2col and 14 in col2im, where 4 hold as much; with a multiple of 8
// channels, 4 in both.
//
// Bytes: the column matrix repeats each pixel KH*KW / (stride_h stride_w) times; it is written once and read by the
// GEMM once (forward, 3x3, float: 72 bytes a pixel and channel beside the 8 that the product itself needs). A chunk of
// it exists at a time: `rows` rows of windows from `first_row`, of every image from `first_image` to `images` of them.
#include "common.cuh"
#include "conv.cuh"
#include "pointwise.cuh"

KERNEL __launch_bounds__(THREADS)
im2col(const real* __restrict__ x, real* __restrict__ columns, Conv s, int first_image, int images, int first_row,
       int rows)
{
    const int i = thread_index();
    if (i >= images * rows * s.out_width * s.kernel_h * s.kernel_w * s.channels) return;
    int rest = i;
    const int c = rest % s.channels;                    rest /= s.channels;
    const int kw = rest % s.kernel_w;                   rest /= s.kernel_w;
    const int kh = rest % s.kernel_h;                   rest /= s.kernel_h;
    const int ow = rest % s.out_width;                  rest /= s.out_width;
    const int oh = first_row + rest % rows;
    const int n = first_image + rest / rows;

    const int h = oh * s.stride_h - s.pad_h + kh * s.dilation_h;
    const int w = ow * s.stride_w - s.pad_w + kw * s.dilation_w;
    const bool inside = h >= 0 && h < s.height && w >= 0 && w < s.width;
    columns[i] = inside ? x[((n * s.height + h) * s.width + w) * s.channels + c] : 0;
}

// Adds a chunk's columns to x. One thread an element of the pixel rows top to top + height of the chunk's images: the
// rows that its windows touch. Chunks follow one another, so the order of every sum is fixed.
KERNEL __launch_bounds__(THREADS)
col2im(const real* __restrict__ columns, INOUT real* __restrict__ x, Conv s, int first_image, int images, int first_row,
       int rows, int top, int height)
{
    const int i = thread_index();
    if (i >= images * height * s.width * s.channels) return;
    const int c = i % s.channels;
    const int w = i / s.channels % s.width;
    const int h = top + i / s.channels / s.width % height;
    const int n = i / s.channels / s.width / height;            // counted from first_image

    real sum = 0;
    for (int kh = 0; kh < s.kernel_h; kh++) {
        const int above = h + s.pad_h - kh * s.dilation_h;      // oh * stride_h
        const int oh = above / s.stride_h - first_row;
        if (above < 0 || above % s.stride_h != 0 || oh < 0 || oh >= rows) continue;
        for (int kw = 0; kw < s.kernel_w; kw++) {
            const int left = w + s.pad_w - kw * s.dilation_w;
            const int ow = left / s.stride_w;
            if (left < 0 || left % s.stride_w != 0 || ow >= s.out_width) continue;
            const int window = (n * rows + oh) * s.out_width + ow;
            sum += columns[((window * s.kernel_h + kh) * s.kernel_w + kw) * s.channels + c];
        }
    }
    x[(((first_image + n) * s.height + h) * s.width + w) * s.channels + c] += sum;
}

// What follows the GEMM of the forward product, in place: bias and ReLU.
KERNEL __launch_bounds__(THREADS)
epilogue(INOUT real* __restrict__ y, const real* __restrict__ bias, int count, int channels, int with_bias,
         int with_relu)
{
    const int i = thread_index();
    if (i >= count) return;
    const real value = with_bias ? y[i] + bias[i % channels] : y[i];
    y[i] = with_relu ? relu_of(value) : value;
}
