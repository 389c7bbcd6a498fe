// Mean and 1/σ of each channel of x (pixels, channels), a block a channel: a sum over the threads' shares, over the lanes
// of a warp by shuffles, over the warps through shared memory. And a sum with a dynamic shared array.
__device__ __forceinline__ float warp_sum(float value)
{
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
    return value;
}

__device__ __forceinline__ float block_sum(float value, float* partial)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_sum(value);
    __syncthreads();                        // the last sum has been read
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    if (warp == 0) {
        value = lane < warps ? partial[lane] : 0.f;
        value = warp_sum(value);
        if (lane == 0) partial[0] = value;
    }
    __syncthreads();
    return partial[0];
}

extern "C" __global__ void __launch_bounds__(256)
statistics(const float* __restrict__ x, float* __restrict__ mean, float* __restrict__ rstd, int pixels, int channels,
           float eps)
{
    __shared__ float partial[32];
    const int channel = blockIdx.x;
    float sum = 0.f;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) sum += x[i * channels + channel];
    const float mu = block_sum(sum, partial) / pixels;
    float squares = 0.f;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        const float d = x[i * channels + channel] - mu;
        squares = fmaf(d, d, squares);
    }
    const float variance = block_sum(squares, partial) / pixels;
    if (threadIdx.x == 0) { mean[channel] = mu; rstd[channel] = rsqrtf(variance + eps); }
}

extern "C" __global__ void __launch_bounds__(128)
total(const float* __restrict__ x, INOUT float* __restrict__ out, int count)
{
    extern __shared__ float partial[];
    float sum = 0.f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) sum += x[i];
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) atomicAdd(out, partial[0]);
}
