// Probes of ptx.cuh: one warp runs each function on data that it is given, so that a test can compare the GPU's
// instructions with the simulated GPU's, bit for bit. The products read their fragments as ptx.cuh draws them.
//
// needs sm_80
#include "common.cuh"
#include "ptx.cuh"

// bits[i] = x[i] as TF32.
KERNEL __launch_bounds__(32)
probe_tf32(const float* __restrict__ x, unsigned* __restrict__ bits, int count)
{
    for (int i = threadIdx.x; i < count; i += 32) bits[i] = to_tf32(x[i]);
}

// bits[i] = low[i] and high[i] as two BF16.
KERNEL __launch_bounds__(32)
probe_bf16(const float* __restrict__ low, const float* __restrict__ high, unsigned* __restrict__ bits, int count)
{
    for (int i = threadIdx.x; i < count; i += 32) bits[i] = pack_bf16(low[i], high[i]);
}

__device__ __forceinline__ void store(const float (&d)[4], float* y)
{
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    y[g * 8 + 2 * t] = d[0];
    y[g * 8 + 2 * t + 1] = d[1];
    y[(g + 8) * 8 + 2 * t] = d[2];
    y[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// y (16, 8) = a (16, 8) b (8, 8) + a (16, 8) b (8, 8): two steps, so that the sum is carried on.
KERNEL __launch_bounds__(32)
probe_mma_tf32(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ y)
{
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const unsigned fa[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]),
                            to_tf32(a[g * 8 + t + 4]), to_tf32(a[(g + 8) * 8 + t + 4])};
    const unsigned fb[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
    float d[4] = {};
    mma_m16n8k8_tf32(d, fa, fb);
    mma_m16n8k8_tf32(d, fa, fb);
    store(d, y);
}

// y (16, 8) = a (16, 16) b (16, 8) + a (16, 16) b (16, 8).
KERNEL __launch_bounds__(32)
probe_mma_bf16(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ y)
{
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned fa[4], fb[2];
    for (int i = 0; i < 4; i++) {
        const float* pair = &a[(g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8];
        fa[i] = pack_bf16(pair[0], pair[1]);
    }
    for (int i = 0; i < 2; i++) {
        const float* pair = &b[(2 * t + i * 8) * 8 + g];
        fb[i] = pack_bf16(pair[0], pair[8]);
    }
    float d[4] = {};
    mma_m16n8k16_bf16(d, fa, fb);
    mma_m16n8k16_bf16(d, fa, fb);
    store(d, y);
}

// y[i][lane] = a lane's word of matrix i of x (4, 8, 4 words).
template <bool TRANSPOSED>
__device__ __forceinline__ void read_matrices(const unsigned* x, unsigned* y)
{
    __shared__ __align__(16) unsigned rows[32][4];
    const int lane = threadIdx.x;
    for (int i = 0; i < 4; i++) rows[lane][i] = x[4 * lane + i];
    __syncwarp();
    unsigned d[4];
    if (TRANSPOSED)
        ldmatrix_transposed(d, rows[lane]);
    else
        ldmatrix(d, rows[lane]);
    for (int i = 0; i < 4; i++) y[32 * i + lane] = d[i];
}

KERNEL __launch_bounds__(32)
probe_ldmatrix(const unsigned* __restrict__ x, unsigned* __restrict__ y) { read_matrices<false>(x, y); }

KERNEL __launch_bounds__(32)
probe_ldmatrix_transposed(const unsigned* __restrict__ x, unsigned* __restrict__ y) { read_matrices<true>(x, y); }

// y (2, 128): x's first `count` numbers (a multiple of 4), then zeros, by two groups of copies, each read by the lane
// beside the one that copied it.
KERNEL __launch_bounds__(32)
probe_copy(const float* __restrict__ x, float* __restrict__ y, int count)
{
    __shared__ __align__(16) float tile[2][128];
    const int lane = threadIdx.x, beside = (lane + 1) % 32;
    for (int group = 0; group < 2; group++) {
        const int first = group * 128 + lane * 4;
        cp_async16(&tile[group][lane * 4], first < count ? x + first : x, first < count);
        cp_async_commit();
    }
    cp_async_wait<1>();         // the first group is there, the second may be under way
    __syncwarp();
    for (int i = 0; i < 4; i++) y[beside * 4 + i] = tile[0][beside * 4 + i];
    cp_async_wait<0>();
    __syncwarp();
    for (int i = 0; i < 4; i++) y[128 + beside * 4 + i] = tile[1][beside * 4 + i];
}
