// Atomic operations: they read, change and write one word, without another thread coming between, and give its former
// value. Threads run one at a time here, so plain code will do; what remains is to tell the checks that such accesses
// do not race with each other.

#pragma once

#include "machine.h"

#define SIM_ATOMIC_ADD(T, SUM) \
    SIM_UNCHECKED inline T atomicAdd(T* address, T value) \
    { \
        sim::check(address, sizeof(T), sim::ATOMIC, __builtin_return_address(0)); \
        const T old = *address; \
        *address = SUM; \
        return old; \
    }

SIM_ATOMIC_ADD(int, (int)((unsigned)old + (unsigned)value))
SIM_ATOMIC_ADD(unsigned, old + value)
SIM_ATOMIC_ADD(unsigned long long, old + value)
SIM_ATOMIC_ADD(float, old + value)
