// C (M, N) = A (M, K) B (K, N), row-major, by tensor cores; sizes are multiples of the tiles.
//
// gemm_tf32: 4 warps (2 x 2) own 64 x 64 of C, each 32 x 32, that is 2 x 4 products of 16 x 8. While they multiply one
// stage of 16 along K, asynchronous copies bring the next.
extern "C" __global__ void __launch_bounds__(128)
gemm_tf32(const float* __restrict__ A, const float* __restrict__ B, float* __restrict__ C, int M, int N, int K)
{
    __shared__ __align__(16) float As[2][64][20];
    __shared__ __align__(16) float Bs[2][16][72];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const int m0 = blockIdx.y * 64, n0 = blockIdx.x * 64, wm = warp / 2 * 32, wn = warp % 2 * 32;
    float sum[2][4][4] = {};
    auto load = [&](int stage, int k0) {
        for (int i = thread; i < 256; i += 128) {
            cp_async16(&As[stage][i / 4][i % 4 * 4], &A[(m0 + i / 4) * K + k0 + i % 4 * 4]);
            cp_async16(&Bs[stage][i / 16][i % 16 * 4], &B[(k0 + i / 16) * N + n0 + i % 16 * 4]);
        }
        cp_async_commit();
    };
    load(0, 0);
    const int steps = K / 16;
    for (int step = 0; step < steps; step++) {
        const int stage = step % 2;
        if (step + 1 < steps) { load(1 - stage, (step + 1) * 16); cp_async_wait<1>(); }
        else cp_async_wait<0>();
        __syncthreads();
        for (int k = 0; k < 16; k += 8) {
            unsigned a[2][4], b[4][2];
            for (int i = 0; i < 2; i++) {
                const int r = wm + i * 16 + g;
                a[i][0] = to_tf32(As[stage][r][k + t]);
                a[i][1] = to_tf32(As[stage][r + 8][k + t]);
                a[i][2] = to_tf32(As[stage][r][k + t + 4]);
                a[i][3] = to_tf32(As[stage][r + 8][k + t + 4]);
            }
            for (int j = 0; j < 4; j++) {
                const int c = wn + j * 8 + g;
                b[j][0] = to_tf32(Bs[stage][k + t][c]);
                b[j][1] = to_tf32(Bs[stage][k + t + 4][c]);
            }
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) mma_m16n8k8_tf32(sum[i][j], a[i], b[j]);
        }
        __syncthreads();
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) {
            float* c = &C[(m0 + wm + i * 16 + g) * N + n0 + wn + j * 8 + 2 * t];
            *reinterpret_cast<float2*>(c) = make_float2(sum[i][j][0], sum[i][j][1]);
            *reinterpret_cast<float2*>(c + 8 * N) = make_float2(sum[i][j][2], sum[i][j][3]);
        }
}

// one warp a block, one product of 16 x 8, straight from global memory
extern "C" __global__ void __launch_bounds__(32)
gemm_bf16(const float* __restrict__ A, const float* __restrict__ B, float* __restrict__ C, int M, int N, int K)
{
    const int g = threadIdx.x / 4, t = threadIdx.x % 4, m0 = blockIdx.y * 16, n0 = blockIdx.x * 8;
    float sum[4] = {};
    for (int k0 = 0; k0 < K; k0 += 16) {
        unsigned a[4], b[2];
        for (int i = 0; i < 4; i++) {
            const float* p = &A[(m0 + g + i % 2 * 8) * K + k0 + 2 * t + i / 2 * 8];
            a[i] = pack_bf16(p[0], p[1]);
        }
        for (int i = 0; i < 2; i++) {
            const float* p = &B[(k0 + 2 * t + i * 8) * N + n0 + g];
            b[i] = pack_bf16(p[0], p[N]);
        }
        mma_m16n8k16_bf16(sum, a, b);
    }
    float* c = &C[(m0 + g) * N + n0 + 2 * t];
    c[0] = sum[0];
    c[1] = sum[1];
    c[8 * N] = sum[2];
    c[8 * N + 1] = sum[3];
}
