// C = alpha A B + beta C, row-major: A (M, K), B (K, N), C (M, N). A block of 256 threads owns 64 x 64 of C and goes
// through K in steps of 16; a thread owns 4 x 4.
#define TILE 64
#define DEPTH 16

extern "C" __global__ void __launch_bounds__(256)
gemm(const float* __restrict__ A, const float* __restrict__ B, INOUT float* __restrict__ C, int M, int N, int K,
     float alpha, float beta)
{
    __shared__ float As[DEPTH][TILE + 4];
    __shared__ float Bs[DEPTH][TILE];
    const int thread = threadIdx.x, column = thread % 16 * 4, row = thread / 16 * 4;
    const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        for (int i = thread; i < TILE * DEPTH; i += 256) {
            const int m = i / DEPTH, k = i % DEPTH;
            As[k][m] = (m0 + m < M && k0 + k < K) ? A[(m0 + m) * K + k0 + k] : 0.f;
            const int kb = i / TILE, n = i % TILE;
            Bs[kb][n] = (k0 + kb < K && n0 + n < N) ? B[(k0 + kb) * N + n0 + n] : 0.f;
        }
        __syncthreads();
        for (int k = 0; k < DEPTH; k++) {
            const float4 a4 = *reinterpret_cast<const float4*>(&As[k][row]);
            const float4 b4 = *reinterpret_cast<const float4*>(&Bs[k][column]);
            const float a[4] = {a4.x, a4.y, a4.z, a4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int m = m0 + row + i, n = n0 + column + j;
            if (m < M && n < N) {
                float value = alpha * sum[i][j];
                if (beta != 0.f) value = fmaf(beta, C[m * N + n], value);
                C[m * N + n] = value;
            }
        }
}
