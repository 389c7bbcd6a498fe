// What a group of neighbouring lanes of a warp (a power of two of them) computes together, by a butterfly of shuffles:
// log2(group) steps, in each of which a lane meets the one that is `distance` away. Every lane gets the result, the
// same bits. All lanes of the warp take part, each in its own group.

#pragma once

constexpr unsigned ALL_LANES = 0xffffffffu;

template <typename T>
__device__ __forceinline__ T group_sum(T value, int group)
{
    for (int distance = group / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

template <typename T>
__device__ __forceinline__ T group_max(T value, int group)
{
    for (int distance = group / 2; distance > 0; distance /= 2) {
        const T other = __shfl_xor_sync(ALL_LANES, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

template <typename T>
__device__ __forceinline__ T group_min(T value, int group)
{
    for (int distance = group / 2; distance > 0; distance /= 2) {
        const T other = __shfl_xor_sync(ALL_LANES, value, distance);
        value = other < value ? other : value;
    }
    return value;
}
