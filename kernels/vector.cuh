// Neighbouring numbers that a thread moves and computes as one: VECTOR of them, or as many as the type says.
//
// With channels last, neighbouring numbers are neighbouring channels. Where 4 divides the channels, the door compiles
// with VECTOR=4 and a thread moves 16 bytes (float) by one instruction: a warp then moves 512 bytes at once, and the
// arithmetic on indices is paid once for four numbers. With VECTOR=1 every number of channels works.
// The arrays must begin at a multiple of 16 bytes (minunet/ops/kernels/vector.py looks).

#pragma once

#ifndef VECTOR
#define VECTOR 1
#endif

template <typename T, int N = VECTOR>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
    T of[N];
};

template <int N = VECTOR, typename T>
__device__ __forceinline__ Vector<T, N> load(const T* from)
{
    return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& values)
{
    *reinterpret_cast<Vector<T, N>*>(to) = values;
}

template <typename T>
__device__ __forceinline__ Vector<T> repeated(T value)
{
    Vector<T> values;
    #pragma unroll
    for (int v = 0; v < VECTOR; v++) values.of[v] = value;
    return values;
}
