// Each warp reverses rows of 32 numbers in a buffer of its own, ordered by __syncwarp alone; weights are a constant table.
__constant__ float scale[4] = {1.f, 2.f, 3.f, 4.f};
__device__ int calls;

extern "C" __global__ void __launch_bounds__(128)
staging(const float* __restrict__ x, float* __restrict__ y, int repeats)
{
    __shared__ float buffer[4][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = 0.f;
    for (int r = 0; r < repeats; r++) {
        buffer[warp][lane] = x[(blockIdx.x * blockDim.x + threadIdx.x) * repeats + r];
        __syncwarp();
        sum += buffer[warp][31 - lane] * scale[r & 3] + buffer[warp][0];
        __syncwarp();
    }
    y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
    if (threadIdx.x == 0) atomicAdd(&calls, 1);
}
