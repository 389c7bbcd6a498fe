// Inverted dropout: y = x keep / (1 - p), where `keep` is a function of a key and the element's index. No state, no
// mask in memory: the gradient, dx = dy keep / (1 - p), is the same kernel with the same key, and the mask of the CPU
// (minunet/ops/dropout.py) is the same to the bit.
//
// Philox4x32-10 turns (key, counter) into four 32-bit words by ten rounds of two 32 x 32 -> 64-bit products.
// Element i takes word i mod 4 of counter i / 4 and is kept when the word is at least threshold = p 2^32.
//
// A thread owns one value of the counter: four neighbouring numbers, read and written as one (VECTOR=4) where 4 divides
// their count: in float a warp moves 512 bytes, all of 16 sectors. With VECTOR=1 each of a thread's four loads and
// stores touches these 16 sectors and uses a quarter of them; the L1 cache keeps them for the other three. Bytes a
// number in float: 8; integer operations: about 25, on which a GPU spends about the time that the bytes take.
//
// Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).
//
// variants: default; VECTOR=4
#include "common.cuh"
#include "vector.cuh"

struct Words {
    unsigned of[4];
};

__device__ __forceinline__ Words philox4x32(unsigned long long counter, unsigned long long key)
{
    Words c = {(unsigned)counter, (unsigned)(counter >> 32), 0, 0};
    unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
    #pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long p0 = (unsigned long long)c.of[0] * 0xD2511F53u;
        const unsigned long long p1 = (unsigned long long)c.of[2] * 0xCD9E8D57u;
        c = {(unsigned)(p1 >> 32) ^ c.of[1] ^ k0, (unsigned)p1, (unsigned)(p0 >> 32) ^ c.of[3] ^ k1, (unsigned)p0};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// key is one number, in memory: a replay of recorded launches takes another one. threshold has 64 bits, as p 2^32 may
// round to 2^32. A product, not a selection: NaN and infinity where dropped give NaN, as on the CPU.
KERNEL __launch_bounds__(THREADS)
dropout(const real* __restrict__ x, real* __restrict__ y, long long count, const unsigned long long* __restrict__ key,
        unsigned long long threshold, real scale)
{
    const long long counter = (unsigned)thread_index(), first = 4 * counter;
    if (first >= count) return;
    const Words words = philox4x32(counter, *key);
    #pragma unroll
    for (int w = 0; w < 4; w += VECTOR) {
        if (first + w >= count) return;
        Vector<real> value = load(x + first + w);
        #pragma unroll
        for (int v = 0; v < VECTOR; v++) value.of[v] = value.of[v] * (real)(words.of[w + v] >= threshold) * scale;
        store(y + first + w, value);
    }
}
