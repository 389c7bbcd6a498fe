// Tensor cores and asynchronous copies: what inline PTX says on a GPU (kernels/ptx.cuh), by the same function names.
//
// A tensor core multiplies two small matrices that a whole warp holds together, in registers: each lane has a few
// elements, its fragment, at places that the PTX manual fixes ("Matrix Fragments for mma.m16n8k8", and k16). With
// g = lane / 4 and t = lane % 4, and E elements in a register (1 of TF32, 2 of BF16), K = 8 * E:
//
//     D (16 x 8) = A (16 x K) * B (K x 8) + C
//     A: register r holds row g + 8 * (r % 2), columns E * t + K/2 * (r / 2) and on
//     B: register r holds rows E * t + K/2 * r and on, column g
//     C and D: register r holds row g + 8 * (r / 2), column 2 * t + r % 2
//
// Products of TF32 or BF16 are exact in float32. A GPU adds them in an order and with a rounding of its own; here they
// are summed in double and rounded once, so results agree to float32's rounding times sqrt(K), no better.
//
// ldmatrix brings fragments from shared memory: every lane reads a row of 16 bytes, 8 lanes an 8 x 8 matrix of elements
// of 2 bytes, the warp 4 of them. Register i gets, of matrix i, elements 2t and 2t + 1 of row g; or transposed, those of
// column g in rows 2t and 2t + 1.
//
// An asynchronous copy goes from global to shared memory while the thread computes on. Copies are committed in groups;
// cp_async_wait<N> waits until at most N groups are under way. Nothing says when a copy is done, except the waiting. So
// here it is done as late as allowed, and until then the target counts as undefined.

#pragma once

#include "arithmetic.h"
#include "machine.h"

namespace sim {

struct Fragments {
    unsigned a[4], b[2];
    float c[4];
    Place place;
};

#pragma GCC visibility push(hidden)
void exchange_mma_tf32(Thread* warp, unsigned lanes);
void exchange_mma_bf16(Thread* warp, unsigned lanes);
void exchange_rows(Thread* warp, unsigned lanes);
void exchange_columns(Thread* warp, unsigned lanes);
uint4 read_row(const void* shared);
void copy_later(void* shared, const void* global, bool valid);
void copies_wait(int groups);
void copies_commit();
#pragma GCC visibility pop

SIM_UNCHECKED inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Exchange exchange,
                              Place here)
{
    const Fragments give = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}, here};
    warp_meet(~0u, exchange, &give, d, here);
}

SIM_UNCHECKED inline void matrices(unsigned (&d)[4], uint4 row, Exchange exchange, Place here)
{
    warp_meet(~0u, exchange, &row, d, here);
}

constexpr unsigned TF32_NAN = 0x7fffffff;

inline unsigned bf16_bits(float value)          // to nearest, ties to even
{
    const unsigned bits = __float_as_uint(value);
    if (value != value) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace sim

// A float rounded to TF32, of 10 bits after the point (cvt.rna: ties away from zero). Any NaN becomes NVIDIA's one:
// without its lower bits it might be an infinity.
inline unsigned to_tf32(float value)
{
    const unsigned bits = __float_as_uint(value);
    if (value != value) return sim::TF32_NAN;
    const bool finite = (bits & 0x7f800000) != 0x7f800000;
    return (finite ? bits + 0x1000 : bits) & 0xffffe000;
}

// Two floats rounded to BF16, `low` in the lower half.
inline unsigned pack_bf16(float low, float high) { return sim::bf16_bits(low) | sim::bf16_bits(high) << 16; }

// d += a * b, by all lanes of the warp.
inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], sim::Place here = SIM_HERE)
{
    sim::mma(d, a, b, sim::exchange_mma_tf32, here);
}

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], sim::Place here = SIM_HERE)
{
    sim::mma(d, a, b, sim::exchange_mma_bf16, here);
}

__forceinline__ void ldmatrix(unsigned (&d)[4], const void* row, sim::Place here = SIM_HERE)
{
    sim::matrices(d, sim::read_row(row), sim::exchange_rows, here);
}

__forceinline__ void ldmatrix_transposed(unsigned (&d)[4], const void* row, sim::Place here = SIM_HERE)
{
    sim::matrices(d, sim::read_row(row), sim::exchange_columns, here);
}

// Copies 16 bytes, or fills them with zeros where not valid.
__forceinline__ void cp_async16(void* shared, const void* global, bool valid = true)
{
    sim::copy_later(shared, global, valid);
}

inline void cp_async_commit() { sim::copies_commit(); }
template <int N>
inline void cp_async_wait() { sim::copies_wait(N); }

#ifdef SIM_MACHINE

namespace sim {
namespace {

// Element e of a register, as a number.
template <int E>
float element(unsigned bits, int e)
{
    if (E == 1) return __uint_as_float(bits);
    return __uint_as_float(e ? bits & 0xffff0000 : bits << 16);
}

void expect_whole_warp(unsigned lanes, const char* what)
{
    if (lanes != ~0u) fail("%s with %d of the 32 lanes of a warp", what, __builtin_popcount(lanes));
}

template <int E>
void exchange_mma(Thread* warp, unsigned lanes)
{
    constexpr int K = 8 * E;
    expect_whole_warp(lanes, "a matrix product");
    float a[16][K];
    float b[K][8];
    for (int lane = 0; lane < WARP; lane++) {
        const Fragments& mine = *(const Fragments*)warp[lane].give;
        const int g = lane / 4;
        const int t = lane % 4;
        for (int r = 0; r < 4; r++)
            for (int e = 0; e < E; e++) a[g + 8 * (r % 2)][E * t + K / 2 * (r / 2) + e] = element<E>(mine.a[r], e);
        for (int r = 0; r < 2; r++)
            for (int e = 0; e < E; e++) b[E * t + K / 2 * r + e][g] = element<E>(mine.b[r], e);
        const unsigned operands[] = {mine.a[0], mine.a[1], mine.a[2], mine.a[3], mine.b[0], mine.b[1]};
        for (unsigned bits : operands)      // a GPU would drop these bits without a word
            if (E == 1 && bits & 0x1fff && bits != TF32_NAN)
                fail("lane %d gives a matrix product an operand that is not rounded to TF32 (%s:%d)", lane,
                     mine.place.file, mine.place.line);
    }
    for (int lane = 0; lane < WARP; lane++)
        for (int r = 0; r < 4; r++) {
            const int row = lane / 4 + 8 * (r / 2);
            const int column = 2 * (lane % 4) + r % 2;
            double sum = ((const Fragments*)warp[lane].give)->c[r];
            for (int k = 0; k < K; k++) sum += (double)a[row][k] * b[k][column];
            ((float*)warp[lane].take)[r] = (float)sum;
        }
}

template <bool TRANSPOSED>
void exchange_matrices(Thread* warp, unsigned lanes)
{
    expect_whole_warp(lanes, "ldmatrix");
    for (int lane = 0; lane < WARP; lane++)
        for (int i = 0; i < 4; i++)
            for (int e = 0; e < 2; e++) {
                const int g = lane / 4, k = 2 * (lane % 4) + e, row = TRANSPOSED ? k : g, column = TRANSPOSED ? g : k;
                const unsigned short* elements = (const unsigned short*)warp[8 * i + row].give;
                ((unsigned short*)warp[lane].take)[2 * i + e] = elements[column];
            }
}

struct Copy {
    void* shared;
    const void* global;
    bool valid;
    int group;
    const void* pc;
};

constexpr int ROW = 16;                             // bytes, of ldmatrix
constexpr int MAX_COPIES = 256;                     // of a thread, under way
constexpr int COPY = 16;                            // bytes

Copy copies[MAX_THREADS][MAX_COPIES];

// Both when it is issued, where a trace has it, and when it is done: in between, nobody may touch what it copies.
void check_copy(const Copy& copy, bool issued)
{
    if (copy.valid) check(copy.global, COPY, READ, copy.pc, issued);
    check(copy.shared, COPY, WRITE, copy.pc, issued);
}

}  // namespace

void exchange_mma_tf32(Thread* warp, unsigned lanes) { exchange_mma<1>(warp, lanes); }
void exchange_mma_bf16(Thread* warp, unsigned lanes) { exchange_mma<2>(warp, lanes); }
void exchange_rows(Thread* warp, unsigned lanes) { exchange_matrices<false>(warp, lanes); }
void exchange_columns(Thread* warp, unsigned lanes) { exchange_matrices<true>(warp, lanes); }

uint4 read_row(const void* shared)
{
    if ((size_t)shared % ROW)
        fail("ldmatrix with a row %zu bytes past a multiple of 16 in shared memory", (size_t)shared % ROW);
    check(shared, ROW, READ, __builtin_return_address(0));
    return *(const uint4*)shared;
}

void copy_later(void* shared, const void* global, bool valid)
{
    Thread* thread = machine.current;
    if (thread->copies == MAX_COPIES) fail("more than %d asynchronous copies under way", MAX_COPIES);
    if ((size_t)shared % COPY || (size_t)global % COPY)
        fail("an asynchronous copy of 16 bytes with a misaligned address: %zu bytes past a multiple of 16 in shared, "
             "%zu in global memory", (size_t)shared % COPY, (size_t)global % COPY);
    const Copy copy = {shared, global, valid, thread->group, __builtin_return_address(0)};
    check_copy(copy, false);
    check_undefined(shared, COPY);
    copies[thread->id][thread->copies++] = copy;
}

void copies_commit() { machine.current->group++; }

void copies_wait(int groups)
{
    Thread* thread = machine.current;
    Copy* mine = copies[thread->id];
    int waiting = 0;
    for (int i = 0; i < thread->copies; i++) {
        const Copy copy = mine[i];
        if (copy.group >= thread->group - groups) {
            mine[waiting++] = copy;
            continue;
        }
        check_copy(copy, true);
        if (copy.valid)
            __builtin_memcpy(copy.shared, copy.global, COPY);
        else
            __builtin_memset(copy.shared, 0, COPY);
    }
    thread->copies = waiting;
}

}  // namespace sim

#endif
