// The shape of a convolution, passed by value to every kernel whose threads walk over windows of an image.
//
// x is (images, height, width, channels), y is (images, out_height, out_width, filters), the weight is
// (kernel_h, kernel_w, channels, filters), all channels last. Window (oh, ow) reads, at kernel position (i, j), the
// pixel (oh * stride_h - pad_h + i * dilation_h, ow * stride_w - pad_w + j * dilation_w), zero outside the image.
// Pooling has filters = channels.

#pragma once

struct Conv {
    int images, height, width, channels;
    int out_height, out_width, filters;
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};
