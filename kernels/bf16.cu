// Floats rounded to BF16, the upper half of a float (7 bits of fraction), for the tensor cores: two in a 4-byte word.
//
// needs sm_80
//
// A thread owns 4 numbers: it reads 16 bytes and writes 8, beside its neighbours'. Bytes: 6 for each number, the price
// of an operand in BF16; there is no arithmetic to speak of.
#include "common.cuh"
#include "ptx.cuh"

KERNEL __launch_bounds__(THREADS)
pack(const float* __restrict__ x, unsigned* __restrict__ words, int fours)
{
    const int i = thread_index();
    if (i >= fours) return;
    const float4 four = reinterpret_cast<const float4*>(x)[i];
    reinterpret_cast<uint2*>(words)[i] = make_uint2(pack_bf16(four.x, four.y), pack_bf16(four.z, four.w));
}
