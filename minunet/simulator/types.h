// CUDA's own words and types, so that a C++ compiler reads a kernel as it stands.
//
// No header of the C or C++ library is included here or below: NVRTC, which compiles the same source for a GPU, has
// none either, so what a kernel may say stays the same (no INFINITY, no std::), and a file compiles in a tenth of a
// second.

#pragma once

#define CUDA_ON_CPU 1               // for the one header that holds PTX on a GPU

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)      // the launch passes the number of threads
#define __align__(n) __attribute__((aligned(n)))

// Blocks run one after another, so one static array serves each block in turn.
#define __shared__ static

// Functions of the machine that stand among the kernel's code are not themselves checked. They are not inlined either,
// because inlined code is instrumented like its surroundings.
#ifdef SIM_CHECK
#define SIM_UNCHECKED __attribute__((noinline, no_sanitize("thread", "undefined"), no_sanitize_coverage))
#else
#define SIM_UNCHECKED
#endif
#define SIM_EXPORT __attribute__((used, visibility("default")))

typedef __SIZE_TYPE__ size_t;

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// float2, float4 and the like: aligned to their size, 16 bytes at most, so that one instruction moves one of them
#define SIM_VECTORS(T, NAME) \
    struct alignas(2 * sizeof(T)) NAME##2 { \
        T x, y; \
    }; \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) NAME##4 { \
        T x, y, z, w; \
    }; \
    inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; } \
    inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SIM_VECTORS(float, float)
SIM_VECTORS(double, double)
SIM_VECTORS(int, int)
SIM_VECTORS(unsigned, uint)
SIM_VECTORS(short, short)
SIM_VECTORS(unsigned short, ushort)
SIM_VECTORS(signed char, char)
SIM_VECTORS(unsigned char, uchar)

constexpr int warpSize = 32;
