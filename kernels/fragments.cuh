// Tiles of numbers in shared memory, and how the warps of rung 4 read fragments of them for the tensor cores (ptx.cuh).
//
// Numbers lie in 32-bit words: a float, which the tensor cores are given as TF32, or with -DBF16=1 two neighbouring
// BF16 (bf16.cu makes them). Two layouts of a tile of a (M, K) or b (K, N), by the index that lies contiguous:
//
//     K inside    [m or n][32 words of k]    a of forward and transposed, b of transposed: ldmatrix
//     K outside   [k][m or n]                b of forward and weight_grad, a of weight_grad: BF16 ldmatrix, transposed;
//                                            TF32 word by word, since ldmatrix transposes half words
//
// A *line* of a tile is what lies together: the words of one m or n with K inside, of one k with K outside. Shared
// memory has 32 banks of 4 bytes. Lines are multiples of 128 bytes, which would put a column into one bank. So chunk c
// of line l lies at c ^ twist, with twist = 0, 2, 4, 6, 1, 3, 5, 7 for l % 8 = 0..7. ldmatrix reads a chunk of each of
// 8 lines at a time: 8 different chunks, all banks once. Word by word, the lanes read 8 neighbouring words, 2 chunks,
// of each of 4 lines with l % 8 < 4, or l % 8 >= 4: again 8 different chunks. Copies write 8 chunks of a line.

#pragma once
#include "common.cuh"
#include "ptx.cuh"

#ifndef BF16
#define BF16 0
#endif

constexpr int PACK = BF16 ? 2 : 1;                      // numbers of a word
constexpr int CHUNK = 4 * PACK;                         // numbers of 16 bytes, which are copied at a time
constexpr int WORDS_K = 32;                             // of K in a tile, which is 32 or (BF16) 64 numbers deep

// Chunk c of a line lies at c ^ twist(line).
__device__ __forceinline__ int twist(int line) { return line % 4 * 2 + line / 4 % 2; }

// The word at which a chunk begins; the lines of a tile are WIDTH words long.
template <int WIDTH>
__device__ __forceinline__ int place(int line, int chunk) { return line * WIDTH + (chunk ^ twist(line)) * 4; }

// A warp's part of a tile of a or b with ROWS m or n: its rows, from `first` on.
template <bool K_INSIDE, int ROWS>
struct Part {
    static constexpr int WIDTH = K_INSIDE ? WORDS_K : ROWS / PACK;
    const unsigned* tile;
    int first, lane;

    // The fragments of 16 rows, from `offset` on, at words 8 * step to 8 * step + 7 of K (BF16: pairs of k, which with
    // K outside lie in two lines): row g or g + 8, word t or t + 4, with g = lane / 4 and t = lane % 4.
    //     as a of one product      (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
    //     as b of two products     (g, t), (g, t + 4), (g + 8, t), (g + 8, t + 4)
    // They are 4 matrices of 8 rows and 4 words. ldmatrix reads one after the other; the lines of each are named by 8
    // lanes, which are told by lane / 8 whether theirs is `lower`, of rows 8 to 15, and `right`, of words 4 to 7.
    template <bool AS_A>
    __device__ __forceinline__ void read(unsigned (&fragments)[4], int offset, int step) const
    {
        const int matrix = lane / 8, lower = AS_A ? matrix % 2 : matrix / 2, right = AS_A ? matrix / 2 : matrix % 2;
        const int rows = first + offset;
        // with ldmatrix, lines are a multiple of 8 and lane % 8: their twist is the lane's; chunk 2 * step + right
        if (K_INSIDE) {
            ldmatrix(fragments, &tile[(rows + 8 * lower + lane % 8) * WIDTH + (right ^ twist(lane) ^ 2 * step) * 4]);
        } else if (BF16) {
            const int k = 16 * step + 8 * right + lane % 8, chunk = rows / 8 + lower;
            ldmatrix_transposed(fragments, &tile[k * WIDTH + (chunk ^ twist(lane)) * 4]);
        } else {
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                const int k = 8 * step + 4 * (AS_A ? i / 2 : i % 2) + lane % 4;
                const int row = rows + 8 * (AS_A ? i % 2 : i / 2) + lane / 4;
                fragments[i] = tile[place<WIDTH>(k, row / 4) + row % 4];
            }
        }
        if (!BF16) {
            #pragma unroll
            for (int i = 0; i < 4; i++) fragments[i] = to_tf32(__uint_as_float(fragments[i]));
        }
    }
};

// d += a b: 8 words of K.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
#if BF16
    mma_m16n8k16_bf16(d, a, b);
#else
    mma_m16n8k8_tf32(d, a, b);
#endif
}
