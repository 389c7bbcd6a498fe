// Tensor cores and asynchronous copies: the only inline PTX of the project, one instruction a function.
//
// needs sm_80
//
// A warp's 32 lanes hold a small matrix together, each lane a *fragment* of it. With g = lane / 4 and t = lane % 4:
//
//     m16n8k8, TF32    D (16 x 8) = A (16 x 8) B (8 x 8) + D        one element a register
//         a[0], a[1], a[2], a[3]    A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]
//         b[0], b[1]                B[t][g], B[t + 4][g]
//     m16n8k16, BF16   D (16 x 8) = A (16 x 16) B (16 x 8) + D      two elements a register, the first in bits 0-15
//         a[0], a[1], a[2], a[3]    A[g][2t, 2t + 1], A[g + 8][2t, ...], A[g][2t + 8, ...], A[g + 8][2t + 8, ...]
//         b[0], b[1]                B[2t, 2t + 1][g], B[2t + 8, 2t + 9][g]
//     both
//         d[0], d[1], d[2], d[3]    D[g][2t], D[g][2t + 1], D[g + 8][2t], D[g + 8][2t + 1]
//
// On the CPU the simulator brings the same functions. Source: NVIDIA, PTX ISA, "Matrix Fragments for mma.m16n8k8".

#pragma once

#ifndef CUDA_ON_CPU

// To TF32, a float whose lower 13 bits are 0 (10 bits of fraction): to the nearest, ties away from zero.
__device__ __forceinline__ unsigned to_tf32(float value)
{
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
}

// Two floats as BF16 (the upper half of a float, 7 bits of fraction): to the nearest, ties to even.
__device__ __forceinline__ unsigned pack_bf16(float low, float high)
{
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 2-byte elements from shared memory, a lane a row of 16 bytes: lane l says where row l % 8 of
// matrix l / 8 lies. d[i] of a lane is word t of row g of matrix i: elements 2t and 2t + 1, or one TF32.
__device__ __forceinline__ void ldmatrix(unsigned (&d)[4], const void* row)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(address) : "memory");
}

// The same, transposed: d[i] of a lane is column g of matrix i, elements 2t and 2t + 1.
__device__ __forceinline__ void ldmatrix_transposed(unsigned (&d)[4], const void* row)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(address) : "memory");
}

// Start to copy 16 bytes from global to shared memory, both aligned to 16, past the registers and the first-level
// cache; where not ok, nothing is read and zeros are written.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool ok = true)
{
    const unsigned address = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(address), "l"(global), "r"(ok ? 16 : 0) : "memory");
}

// The copies that this thread started since its last commit become a group (which may be empty).
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most the last N of this thread's groups are still under way. The copies of others need a barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

#endif
