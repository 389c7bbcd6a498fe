// The machine as a kernel sees it: which thread runs, and the two ways in which threads wait for each other.
//
// A GPU runs a grid of blocks. The threads of a block share memory and wait for each other at __syncthreads; each 32 of
// them are a warp, whose lanes exchange values in shuffles and votes. Here one block runs after another, and of its
// threads one at a time, each until it has to wait (scheduler.h). On a GPU any order is possible, therefore three are
// offered: a kernel whose results differ between them has an error.
//
// This header is compiled with every kernel file. What it declares is compiled once, without the kernels, and linked to
// each of them.

#pragma once

#include "types.h"

namespace sim {

constexpr int MAX_THREADS = 1024;       // of a block
constexpr int WARP = 32;                // lanes of a warp

struct Thread;

// A place in the kernel's source; as a default argument it is where the call stands.
struct Place {
    const char* file;
    int line;
};
#define SIM_HERE {__builtin_FILE(), __builtin_LINE()}

// What happens when all lanes of a warp operation have come: `warp` is the thread in lane 0, bit i of `lanes` says that
// lane i takes part. Each lane's `give` points to what it brought, its `take` to where it wants the result.
typedef void (*Exchange)(Thread* warp, unsigned lanes);

enum State {
    NEW,            // not begun: has no stack yet
    READY,          // running, or could
    AT_BARRIER,     // waits at __syncthreads
    IN_WARP,        // waits in a warp operation
    DONE,
};

struct Thread {
    uint3 index;                // threadIdx
    int id;                     // its number in the block
    int lane;                   // its number in the warp
    State state;
    void* context;              // of a thread that waits: where to go on (fiber.h)
    char* stack;

    Place place;                // where it waits
    int vote;                   // brought to the barrier
    unsigned mask;              // brought to the warp operation: the lanes that it expects,
    Exchange exchange;          // the operation,
    const void* give;           // what it contributes
    void* take;                 // and where it wants the result

    int copies;                 // asynchronous copies not yet waited for (tensor_cores.h)
    int group;                  // how many groups of copies it has committed
    unsigned barrier_time;      // when it last passed a barrier (check.h)
};

struct Machine {
    Thread* current;
    dim3 grid, block;
    uint3 block_index;
    char* dynamic_shared;
    size_t dynamic_bytes;
    unsigned time;              // counts barriers, warp operations and blocks: the clock of check.h
    Thread threads[MAX_THREADS];
};

#pragma GCC visibility push(hidden)

extern Machine machine;

// Ends the launch with a message, which begins with block and thread. Does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Waits until all threads of the block are here; the sum of their votes.
int block_barrier(int vote, Place here);

// Waits until all lanes of mask are here; then `exchange` (if any) moves values between them.
void warp_meet(unsigned mask, Exchange exchange, const void* give, void* take, Place here);

enum Access { READ, WRITE, ATOMIC };

// Called before every access to memory in the checked build; pc is the address of the instruction (check.h).
// recorded: a trace has the access already.
#ifdef SIM_CHECK
void check(const void* address, size_t bytes, Access access, const void* pc, bool recorded = false);
void check_undefined(const void* address, size_t bytes);
#else
inline void check(const void*, size_t, Access, const void*, bool = false) {}
inline void check_undefined(const void*, size_t) {}
#endif

#pragma GCC visibility pop

// Who am I: constant for as long as a thread runs, so the compiler may keep it.
SIM_UNCHECKED __attribute__((const)) inline uint3 thread_index() { return machine.current->index; }
SIM_UNCHECKED __attribute__((const)) inline uint3 block_index() { return machine.block_index; }
SIM_UNCHECKED __attribute__((const)) inline dim3 block_size() { return machine.block; }
SIM_UNCHECKED __attribute__((const)) inline dim3 grid_size() { return machine.grid; }
SIM_UNCHECKED __attribute__((const)) inline char* dynamic_shared() { return machine.dynamic_shared; }

// Calls a kernel with the arguments that the launch points to.
template <int... I>
struct Numbers {};

template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};

template <int... I>
struct Count<0, I...> {
    typedef Numbers<I...> To;
};

template <class... A, int... I>
SIM_UNCHECKED void call(void (*kernel)(A...), void** arguments, Numbers<I...>)
{
    kernel(*(A*)arguments[I]...);
}

template <class... A>
SIM_UNCHECKED void call(void (*kernel)(A...), void** arguments)
{
    call(kernel, arguments, typename Count<sizeof...(A)>::To());
}

}  // namespace sim

#define threadIdx (sim::thread_index())
#define blockIdx (sim::block_index())
#define blockDim (sim::block_size())
#define gridDim (sim::grid_size())

// `extern __shared__ T name[];` is rewritten to this: an array whose size the launch decides
#define SIM_DYNAMIC_SHARED(T, name) T* const name = (T*)sim::dynamic_shared();

// Makes a kernel known to the launch; one stands behind the source for each kernel.
#define SIM_KERNEL(name) \
    extern "C" SIM_EXPORT SIM_UNCHECKED void sim_kernel_##name(void** arguments) { sim::call(name, arguments); }

// ---- barriers: all threads of the block come, to the same one
inline void __syncthreads(sim::Place here = SIM_HERE) { sim::block_barrier(0, here); }
inline int __syncthreads_count(int vote, sim::Place here = SIM_HERE) { return sim::block_barrier(vote != 0, here); }
inline int __syncthreads_or(int vote, sim::Place here = SIM_HERE) { return sim::block_barrier(vote != 0, here) != 0; }
inline int __syncthreads_and(int vote, sim::Place here = SIM_HERE) { return sim::block_barrier(vote == 0, here) == 0; }

// Threads run one at a time and see each other's writes at once; the checks do not count a fence as a barrier.
inline void __threadfence() {}
inline void __threadfence_block() {}
