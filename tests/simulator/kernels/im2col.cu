// x (images, H, W, C) -> columns (images * OH * OW, KH * KW * C): a thread an element, in strides of the grid.
extern "C" __global__ void __launch_bounds__(256)
im2col(const float* __restrict__ x, float* __restrict__ columns, int images, int height, int width, int channels,
       int kernel, int pad, int stride, int out_height, int out_width)
{
    const int count = images * out_height * out_width * kernel * kernel * channels;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        int rest = i;
        const int c = rest % channels; rest /= channels;
        const int kw = rest % kernel; rest /= kernel;
        const int kh = rest % kernel; rest /= kernel;
        const int ow = rest % out_width; rest /= out_width;
        const int oh = rest % out_height;
        const int image = rest / out_height;
        const int h = oh * stride + kh - pad, w = ow * stride + kw - pad;
        const bool inside = (unsigned)h < (unsigned)height && (unsigned)w < (unsigned)width;
        columns[i] = inside ? __ldg(&x[((image * height + h) * width + w) * channels + c]) : 0.f;
    }
}
