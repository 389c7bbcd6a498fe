// Fibers: several stacks in one operating-system thread, and going from one to the other at a moment of our choosing.
//
// To go on later, a function needs its stack and the registers that a called function must preserve. So a switch pushes
// those registers, exchanges the stack pointer, and pops the other fiber's: 14 instructions. That is for x86-64;
// elsewhere the C library's ucontext does the same, some ten times slower.

#pragma once

#include <sys/mman.h>

#include "machine.h"

#if !defined(__x86_64__)
#define SIM_UCONTEXT 1
#endif
#ifdef SIM_UCONTEXT
#include <ucontext.h>
#endif

namespace sim {

constexpr size_t GUARD = 4096;              // bytes below each stack that nobody may touch: an overflow ends there
constexpr size_t STACK = 64 << 10;          // bytes

// The stacks of a block, in one piece of address space. Memory is given to what is touched only.
extern "C" SIM_EXPORT char* sim_new_stacks()
{
    const size_t bytes = MAX_THREADS * (GUARD + STACK);
    char* stacks = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) return nullptr;
    for (int i = 0; i < MAX_THREADS; i++)
        mprotect(stacks + i * (GUARD + STACK), GUARD, PROT_NONE);
    return stacks;
}

inline char* stack_of(char* stacks, int i) { return stacks + i * (GUARD + STACK) + GUARD; }

// Where stack i begins (it grows downwards). All stacks begin at a multiple of 4096 bytes, which would put their first
// lines into the same few lines of the cache; 32 different offsets spread them.
inline char* stack_top(char* stack)
{
    const size_t number = (size_t)stack / (GUARD + STACK);
    return stack + STACK - number % 32 * 128;
}

#ifndef SIM_UCONTEXT

// A context is the stack pointer of a fiber that waits; above it lie its registers and where to return to.
extern "C" __attribute__((visibility("hidden"))) void sim_switch(void** save, void* load);

asm(R"(
.text
.globl sim_switch
.hidden sim_switch
.type sim_switch, @function
sim_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size sim_switch, .-sim_switch
)");

inline void switch_context(void** save, void* load) { sim_switch(save, load); }

// For a fiber that ends: nobody comes back.
[[noreturn]] inline void leave_to(void* load)
{
    void* nowhere;
    sim_switch(&nowhere, load);
    __builtin_unreachable();
}

inline void* host_context() { return nullptr; }     // filled by the switch away from it

// A context that begins with entry(), as if that had been waiting before its first instruction.
inline void* new_context(char* stack, void (*entry)())
{
    void** top = (void**)stack_top(stack);
    top[-1] = nullptr;                      // entry never returns
    top[-2] = (void*)entry;                 // the address that `ret` takes
    return top - 8;                         // below it six registers, of any value
}

#else

// A context is a pointer to the C library's, which lies at the lower end of the fiber's stack.
inline void switch_context(void** save, void* load) { swapcontext((ucontext_t*)*save, (ucontext_t*)load); }

[[noreturn]] inline void leave_to(void* load)
{
    setcontext((ucontext_t*)load);
    __builtin_unreachable();
}

inline void* host_context()
{
    static ucontext_t host;
    return &host;
}

inline void* new_context(char* stack, void (*entry)())
{
    ucontext_t* context = (ucontext_t*)stack;
    getcontext(context);
    context->uc_stack.ss_sp = stack + sizeof(ucontext_t);
    context->uc_stack.ss_size = STACK - sizeof(ucontext_t);
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}

#endif

}  // namespace sim
