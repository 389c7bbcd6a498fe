// Where the elements of the column matrix lie, which rungs 3 and 4 look up instead of storing it.
//
// Its rows are windows and its columns taps (i, j, channel): a position in the kernel, and a channel. A row or column
// of an implicit matrix is decoded once; then it is moved on without divisions (`advance`). An index of -1 is a zero:
// outside of the image, or past the end.

#pragma once
#include "conv.cuh"

struct Tap { int i, j, channel; };                      // a position in the kernel, and a channel c or filter f
struct Pixel { int image, row, column; };               // a pixel of x, or a window of y

constexpr int NOWHERE = -(1 << 29);                     // a row outside of every image

__device__ __forceinline__ Tap tap_at(int index, int channels, int kernel_w)
{
    const int position = index / channels;
    return {position / kernel_w, position % kernel_w, index % channels};
}

__device__ __forceinline__ void advance(Tap& tap, int by, int channels, int kernel_w)
{
    for (tap.channel += by; tap.channel >= channels; tap.channel -= channels)
        if (++tap.j == kernel_w) {
            tap.j = 0;
            tap.i++;
        }
}

__device__ __forceinline__ Pixel pixel_at(int index, int height, int width)
{
    const int row = index / width;
    return {row / height, row % height, index % width};
}

__device__ __forceinline__ void advance(Pixel& pixel, int by, int height, int width)
{
    for (pixel.column += by; pixel.column >= width; pixel.column -= width)
        if (++pixel.row == height) {
            pixel.row = 0;
            pixel.image++;
        }
}

__device__ __forceinline__ bool within(int i, int count) { return (unsigned)i < (unsigned)count; }

// The pixel of x at a window's first tap: above or left of the image by the padding, NOWHERE past the last window.
__device__ __forceinline__ Pixel corner_of(const Conv& s, Pixel window)
{
    const int row = window.image < s.images ? window.row * s.stride_h - s.pad_h : NOWHERE;
    return {window.image, row, window.column * s.stride_w - s.pad_w};
}

// The index in x under a tap of the window with this corner.
__device__ __forceinline__ int under_window(const Conv& s, Pixel corner, Tap tap)
{
    const int h = corner.row + tap.i * s.dilation_h, w = corner.column + tap.j * s.dilation_w;
    const bool inside = tap.i < s.kernel_h && within(h, s.height) && within(w, s.width);
    return inside ? ((corner.image * s.height + h) * s.width + w) * s.channels + tap.channel : -1;
}

// A pixel of x, counted from the corner of the padding: a multiple of the stride is the first tap of a window there.
__device__ __forceinline__ Pixel from_padding(const Conv& s, Pixel pixel)
{
    const int row = pixel.image < s.images ? pixel.row + s.pad_h : NOWHERE;
    return {pixel.image, row, pixel.column + s.pad_w};
}

// The window at a multiple `position` of the stride, or -1 where there is none.
__device__ __forceinline__ int window_at(int position, int stride, int count)
{
    const int window = stride == 1 ? position : position / stride;
    return position >= 0 && window * stride == position && window < count ? window : -1;
}

// The index in y of the window that has this tap over a pixel, which is counted from the padding: the transpose of
// `under_window`, oh * stride_h + i * dilation_h = row.
__device__ __forceinline__ int window_over(const Conv& s, Pixel pixel, Tap tap)
{
    const int oh = window_at(pixel.row - tap.i * s.dilation_h, s.stride_h, s.out_height);
    const int ow = window_at(pixel.column - tap.j * s.dilation_w, s.stride_w, s.out_width);
    const bool inside = tap.i < s.kernel_h && oh >= 0 && ow >= 0;
    return inside ? ((pixel.image * s.out_height + oh) * s.out_width + ow) * s.filters + tap.channel : -1;
}
