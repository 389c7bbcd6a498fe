// 3x3 convolution as a product with a column matrix that is never stored: y (pixels, filters) = gathered x (pixels, 9 * C)
// times w (9 * C, filters), channels last. A block of 256 threads owns 64 pixels x 64 filters, a thread 4 x 4.
extern "C" __global__ void __launch_bounds__(256)
convolution(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
            float* __restrict__ y, int images, int height, int width, int channels, int filters, int pad, int stride,
            int out_height, int out_width)
{
    __shared__ float Xs[16][64 + 4];
    __shared__ float Ws[16][64];
    const int thread = threadIdx.x;
    const int p0 = blockIdx.x * 64, f0 = blockIdx.y * 64;
    const int K = 9 * channels, pixels = images * out_height * out_width;
    const int mine = thread % 64;                           // each thread gathers for one pixel
    const int p = p0 + mine;
    const int ow = p % out_width, oh = p / out_width % out_height, image = p / (out_width * out_height);
    float sum[4][4] = {};
    for (int k0 = 0; k0 < K; k0 += 16) {
        for (int k = thread / 64; k < 16; k += 4) {
            const int kk = k0 + k, f = f0 + mine;
            Ws[k][mine] = (f < filters && kk < K) ? w[kk * filters + f] : 0.f;
            float value = 0.f;
            if (kk < K && p < pixels) {
                const int c = kk % channels, h = oh * stride - pad + kk / channels / 3;
                const int v = ow * stride - pad + kk / channels % 3;
                if ((unsigned)h < (unsigned)height && (unsigned)v < (unsigned)width)
                    value = x[((image * height + h) * width + v) * channels + c];
            }
            Xs[k][mine] = value;
        }
        __syncthreads();
        for (int k = 0; k < 16; k++) {
            const float4 a4 = *reinterpret_cast<const float4*>(&Xs[k][thread / 16 * 4]);
            const float4 b4 = *reinterpret_cast<const float4*>(&Ws[k][thread % 16 * 4]);
            const float a[4] = {a4.x, a4.y, a4.z, a4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
        }
        __syncthreads();
    }
    for (int j = 0; j < 4; j++) {
        const int f = f0 + thread % 16 * 4 + j;
        if (f >= filters) break;
        for (int i = 0; i < 4; i++) {
            const int q = p0 + thread / 16 * 4 + i;
            if (q < pixels) y[q * filters + f] = sum[i][j] + bias[f];
        }
    }
}
