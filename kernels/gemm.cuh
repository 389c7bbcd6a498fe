// A matrix product whose operands are computed, not stored: sum over k of left(i, k) right(k, j).
//
// A block owns a tile of TILE_M x TILE_N sums. In steps of TILE_K along k it copies a piece of each operand into shared
// memory, and every thread multiplies from there into its own THREAD_M x THREAD_N sums, which stay in registers. While
// it multiplies one step, the loads of the next are under way; two buffers in turn, so one barrier a step is enough.
//
// Arithmetic intensity: for TILE_K (TILE_M + TILE_N) numbers from memory a step makes 2 TILE_K TILE_M TILE_N FLOP, that
// is 2 * 128 * 128 / (4 * 256 bytes) = 32 FLOP/byte for 128 x 128 tiles of float. From shared memory a thread reads
// THREAD_M + THREAD_N numbers for THREAD_M THREAD_N multiply-adds: 8 x 8 makes 2 FLOP/byte, and the lanes of a warp
// share addresses (4 x 8 of them), so the 128 bytes a cycle of an SM feed its 128 multiply-adds.
//
// An operand is a type that says how (i, k) becomes an offset:
//     WIDTH       so many numbers lie side by side and are loaded at once; 16 bytes where it divides the channels
//     ALONG_K     they, and the tile's next ones, lie along k; else along i
//     Row, Depth  what i and what k are decoded into, once; row(s, i), depth(s, k)
//     step(s, depth)            k += TILE_K, without a division
//     offset(s, row, depth)     of the element in memory, or -1 for a zero
#pragma once
#include "common.cuh"
#include "conv.cuh"
#include "vector.cuh"

#ifndef TILE_M                          // the launch chooses by shape: minunet/convolution/kernels.py
#define TILE_M 128
#define TILE_N 128
#define TILE_K 8
#define THREAD_M 8
#define THREAD_N 8
#endif

constexpr int QUAD = 16 / sizeof(real);                     // numbers in the widest load: 4 float, 2 double
constexpr int PAD = QUAD;                                   // apart from a multiple of 32 banks, still aligned
constexpr int RESIDENT = sizeof(real) == 4 ? 2 : 1;         // blocks that share an SM's 65536 registers

constexpr int smaller(int a, int b) { return a < b ? a : b; }

// One operand's way into shared memory: which vectors of a tile a thread copies, and where it is in the operand.
template <class Operand, int LENGTH>
struct Feed {
    static constexpr int V = Operand::WIDTH;
    static constexpr int RUN = (Operand::ALONG_K ? TILE_K : LENGTH) / V;        // vectors of a tile side by side
    static constexpr int VECTORS = TILE_K * LENGTH / V;
    static constexpr int PASSES = (VECTORS + THREADS - 1) / THREADS;
    static constexpr int ROWS = Operand::ALONG_K ? PASSES : 1;                  // a thread's passes differ in i
    static constexpr int DEPTHS = Operand::ALONG_K ? 1 : PASSES;                // or in k
    static_assert(RUN * V == (Operand::ALONG_K ? TILE_K : LENGTH) && THREADS % RUN == 0, "tile and vector do not fit");

    const real* source;
    typename Operand::Row row[ROWS];
    typename Operand::Depth depth[DEPTHS];
    Vector<real, V> held[PASSES];

    // A thread's place in the tile. Neighbouring threads copy neighbouring vectors.
    static __device__ __forceinline__ int side(int) { return threadIdx.x % RUN * V; }
    static __device__ __forceinline__ int line(int pass) { return threadIdx.x / RUN + pass * (THREADS / RUN); }
    static __device__ __forceinline__ int i(int pass) { return Operand::ALONG_K ? line(pass) : side(pass); }
    static __device__ __forceinline__ int k(int pass) { return Operand::ALONG_K ? side(pass) : line(pass); }

    __device__ __forceinline__ Feed(const Conv& s, const real* source, int first_i, int first_k) : source(source)
    {
        #pragma unroll
        for (int r = 0; r < ROWS; r++) row[r] = Operand::row(s, first_i + i(r));
        #pragma unroll
        for (int d = 0; d < DEPTHS; d++) depth[d] = Operand::depth(s, first_k + k(d));
    }

    __device__ __forceinline__ void fetch(const Conv& s)                        // from memory into registers
    {
        #pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            held[pass] = {};
            if (VECTORS % THREADS != 0 && line(pass) * RUN * V + side(pass) >= VECTORS * V) continue;
            const int offset = Operand::offset(s, row[pass % ROWS], depth[pass % DEPTHS]);
            if (offset >= 0) held[pass] = load<V>(source + offset);
        }
        #pragma unroll
        for (int d = 0; d < DEPTHS; d++) Operand::step(s, depth[d]);
    }

    // From registers into shared memory. Vectors along k are stored number by number, across the tile's rows: PAD puts
    // the 32 of a warp into 32 banks for TILE_K = 8. For 16 and 32 they take 2 and 4 turns, and no PAD that keeps the
    // rows aligned would mend that. But such tiles are made for weight gradients, neither operand of which lies along
    // k; only the other products of up to 1024 pixels pay: a thread's 4 stores of left beside 128 multiply-adds of a
    // step (TILE_K = 16), 8 beside 64 (TILE_K = 32).
    __device__ __forceinline__ void put(real (*tile)[LENGTH + PAD]) const
    {
        #pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            if (VECTORS % THREADS != 0 && line(pass) * RUN * V + side(pass) >= VECTORS * V) continue;
            if (Operand::ALONG_K) {
                #pragma unroll
                for (int v = 0; v < V; v++) tile[k(pass) + v][i(pass)] = held[pass].of[v];
            } else {
                store(&tile[k(pass)][i(pass)], held[pass]);
            }
        }
    }
};

// COUNT numbers of one line of a tile that a thread multiplies: vectors, spread over the tile so
// that the threads beside it read the vectors beside it (no bank is asked twice).
template <int COUNT, int LENGTH>
struct Portion {
    static constexpr int V = smaller(COUNT, QUAD);
    static constexpr int SPREAD = LENGTH / COUNT * V;       // numbers between a thread's vectors

    static __device__ __forceinline__ int index(int thread, int n) { return n / V * SPREAD + thread * V + n % V; }

    static __device__ __forceinline__ void read(const real* line, int thread, real (&numbers)[COUNT])
    {
        #pragma unroll
        for (int n = 0; n < COUNT; n += V) {
            const Vector<real, V> vector = load<V>(line + index(thread, n));
            #pragma unroll
            for (int v = 0; v < V; v++) numbers[n + v] = vector.of[v];
        }
    }
};

// The block's tile of the product over depth_begin <= k < depth_end, given to target.put(i, j, vector) vector by
// vector. Block (x, y) owns tile (x, y); depth_begin is a multiple of TILE_K, operands are zero beyond the last k.
template <class Left, class Right, class Target>
__device__ __forceinline__ void tiled_product(const Conv& s, const real* left_source, const real* right_source,
                                              int depth_begin, int depth_end, const Target& target)
{
    constexpr int ACROSS = TILE_N / THREAD_N, DOWN = TILE_M / THREAD_M;         // threads of the block
    constexpr int LANES_N = smaller(8, ACROSS), LANES_M = 32 / LANES_N;         // threads of a warp
    static_assert(ACROSS * DOWN == THREADS && ACROSS % LANES_N == 0 && DOWN % LANES_M == 0, "threads do not fit");
    typedef Portion<THREAD_M, TILE_M> OwnRows;
    typedef Portion<THREAD_N, TILE_N> OwnColumns;

    __shared__ __align__(16) real left_tile[2][TILE_K][TILE_M + PAD];
    __shared__ __align__(16) real right_tile[2][TILE_K][TILE_N + PAD];

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int across = warp % (ACROSS / LANES_N) * LANES_N + lane % LANES_N;
    const int down = warp / (ACROSS / LANES_N) * LANES_M + lane / LANES_N;
    const int first_i = blockIdx.x * TILE_M, first_j = blockIdx.y * TILE_N;

    Feed<Left, TILE_M> left(s, left_source, first_i, depth_begin);
    Feed<Right, TILE_N> right(s, right_source, first_j, depth_begin);
    real sum[THREAD_M][THREAD_N] = {};

    left.fetch(s);
    right.fetch(s);
    left.put(left_tile[0]);
    right.put(right_tile[0]);
    __syncthreads();

    int buffer = 0;
    for (int k = depth_begin; k < depth_end; k += TILE_K) {
        const bool more = k + TILE_K < depth_end;
        if (more) {
            left.fetch(s);
            right.fetch(s);
        }
        #pragma unroll
        for (int kk = 0; kk < TILE_K; kk++) {
            real a[THREAD_M], b[THREAD_N];
            OwnRows::read(left_tile[buffer][kk], down, a);
            OwnColumns::read(right_tile[buffer][kk], across, b);
            #pragma unroll
            for (int m = 0; m < THREAD_M; m++) {
                #pragma unroll
                for (int n = 0; n < THREAD_N; n++) sum[m][n] += a[m] * b[n];
            }
        }
        buffer ^= 1;
        if (more) {                     // the other buffer was last read before the barrier of the previous step
            left.put(left_tile[buffer]);
            right.put(right_tile[buffer]);
        }
        __syncthreads();
    }

    constexpr int V = smaller(OwnColumns::V, Target::WIDTH);
    #pragma unroll
    for (int m = 0; m < THREAD_M; m++) {
        #pragma unroll
        for (int n = 0; n < THREAD_N; n += V) {
            Vector<real, V> vector;
            #pragma unroll
            for (int v = 0; v < V; v++) vector.of[v] = sum[m][n + v];
            target.put(first_i + OwnRows::index(down, m), first_j + OwnColumns::index(across, n), vector);
        }
    }
}
