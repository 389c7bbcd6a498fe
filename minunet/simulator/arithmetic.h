// CUDA's arithmetic: of the functions that its compiler knows without a header, those that kernels use. Another one
// takes a line.
//
// exp(x) of a float is a float, as in CUDA, and min and max of floats take the number when the other is NaN.

#pragma once

#include "types.h"

// f of a double, ff of a float, and f of a float
#define SIM_UNARY(NAME) \
    extern "C" double NAME(double); \
    extern "C" float NAME##f(float); \
    inline float NAME(float x) { return __builtin_##NAME##f(x); }

SIM_UNARY(exp)
SIM_UNARY(expm1)
SIM_UNARY(fabs)
SIM_UNARY(log)
SIM_UNARY(log1p)
SIM_UNARY(sqrt)
extern "C" double fma(double, double, double);
extern "C" float fmaf(float, float, float);
inline float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline float rsqrt(float x) { return 1.f / __builtin_sqrtf(x); }
inline double rsqrt(double x) { return 1. / __builtin_sqrt(x); }
inline float rsqrtf(float x) { return rsqrt(x); }

inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isnan(double x) { return __builtin_isnan(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline bool isfinite(double x) { return __builtin_isfinite(x); }

// ---- min and max
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline double min(double a, double b) { return __builtin_fmin(a, b); }
inline double max(double a, double b) { return __builtin_fmax(a, b); }
inline double min(float a, double b) { return __builtin_fmin(a, b); }
inline double max(float a, double b) { return __builtin_fmax(a, b); }
inline double min(double a, float b) { return __builtin_fmin(a, b); }
inline double max(double a, float b) { return __builtin_fmax(a, b); }

#define SIM_MIN_MAX(A, B, T) \
    inline T min(A a, B b) { return (T)b < (T)a ? (T)b : (T)a; } \
    inline T max(A a, B b) { return (T)a < (T)b ? (T)b : (T)a; }

SIM_MIN_MAX(int, int, int)
SIM_MIN_MAX(unsigned, unsigned, unsigned)
SIM_MIN_MAX(int, unsigned, unsigned)
SIM_MIN_MAX(unsigned, int, unsigned)
SIM_MIN_MAX(long, long, long)
SIM_MIN_MAX(unsigned long, unsigned long, unsigned long)
SIM_MIN_MAX(long long, long long, long long)
SIM_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)

// ---- the bits of a number
#define SIM_BITS(NAME, FROM, TO) \
    inline TO NAME(FROM value) \
    { \
        TO bits; \
        __builtin_memcpy(&bits, &value, sizeof bits); \
        return bits; \
    }

SIM_BITS(__float_as_uint, float, unsigned)
SIM_BITS(__int_as_float, int, float)
SIM_BITS(__uint_as_float, unsigned, float)

// A load through the cache for what nobody writes.
template <class T>
__forceinline__ T __ldg(const T* address) { return *address; }
