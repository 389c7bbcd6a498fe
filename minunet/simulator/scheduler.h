// How the machine runs a grid: blocks one after another, the threads of a block in turn, each until it waits.
//
// A thread that never waits needs no stack of its own: it runs as a call in a loop, and so a kernel without barriers
// costs hardly more than a loop over its elements. Only when a thread waits does it keep the stack on which it ran, and
// the loop goes on upon a fresh one. When no thread can run, the barrier opens, if all threads stand at the same one;
// if not, a GPU would hang or go wrong, and the launch ends with a message that says who waits where.

#pragma once

#include "fiber.h"

namespace sim {

Machine machine;

namespace {

struct WarpState {
    unsigned alive;                 // lanes that have not exited
    unsigned waiting;               // lanes that wait in a warp operation
};

// 0..count-1 forwards, backwards, or by steps that are coprime to count, which meets every number once.
struct Order {
    unsigned count, step, value;

    unsigned next()
    {
        const unsigned now = value;
        value += step;
        if (value >= count) value -= count;
        return now;
    }
};

struct Scheduler {
    int threads;                    // of a block
    int unfinished;
    int runnable;                   // NEW or READY
    int left;                       // of this round
    Order round;
    int votes;                      // of the last barrier
    bool failed;
    char message[1024];

    int order;                      // 0 forwards, 1 backwards, 2 shuffled
    unsigned random;

    void (*body)(void**);           // the kernel and its arguments
    void** arguments;

    void* host;                     // the context of launch()
    char* stacks;
    char* free_stacks[MAX_THREADS];
    int free_count;
    WarpState warps[MAX_THREADS / WARP];
};

Scheduler scheduler;

unsigned random_number()
{
    scheduler.random = scheduler.random * 1664525u + 1013904223u;
    return scheduler.random >> 8;
}

unsigned common_divisor(unsigned a, unsigned b)
{
    while (b) {
        const unsigned rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

Order new_order(unsigned count)
{
    if (scheduler.order == 0 || count < 2) return {count, 1, 0};
    if (scheduler.order == 1) return {count, count - 1, count - 1};
    unsigned step;
    do step = 1 + random_number() % (count - 1);
    while (common_divisor(step, count) != 1);
    return {count, step, random_number() % count};
}

WarpState& warp_of(const Thread* thread) { return scheduler.warps[thread->id / WARP]; }
Thread* lane_0(const Thread* thread) { return &machine.threads[thread->id - thread->lane]; }

// ---- the end of a launch that went wrong: back to the host, with a message

[[noreturn]] void stop(const Thread* thread, const char* format, __builtin_va_list values)
{
    char* message = scheduler.message;
    const uint3 block = machine.block_index;
    int length = __builtin_sprintf(message, "block (%u,%u,%u)", block.x, block.y, block.z);
    if (thread) {
        const uint3 index = thread->index;
        length += __builtin_sprintf(message + length, " thread (%u,%u,%u)", index.x, index.y, index.z);
    }
    length += __builtin_sprintf(message + length, ": ");
    __builtin_vsnprintf(message + length, sizeof scheduler.message - length, format, values);
    scheduler.failed = true;
    leave_to(scheduler.host);
}

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail_block(const char* format, ...)
{
    __builtin_va_list values;
    __builtin_va_start(values, format);
    stop(nullptr, format, values);
}

}  // namespace

void fail(const char* format, ...)
{
    __builtin_va_list values;
    __builtin_va_start(values, format);
    stop(machine.current, format, values);
}

// ---- what the checked build adds (check.h): at the ends of a launch and a block, and where threads have waited
#ifdef SIM_CHECK
void check_launch();
void check_block();
bool check_end();                                           // false: a fault of the launch as a whole
void check_warp(const Thread* warp, unsigned lanes);
#else
inline void check_launch() {}
inline void check_block() {}
inline bool check_end() { return true; }
inline void check_warp(const Thread*, unsigned) {}
#endif

namespace {

// ---- waiting, and going on

bool same(Place a, Place b) { return a.line == b.line && (a.file == b.file || !__builtin_strcmp(a.file, b.file)); }

bool same_operation(const Thread* a, const Thread* b)
{
    return a->exchange == b->exchange && a->mask == b->mask && same(a->place, b->place);
}

void wake(Thread* thread)
{
    thread->state = READY;
    scheduler.runnable++;
}

// Completes the warp operation that `thread` waits in, if all its lanes wait in it too.
bool complete(const Thread* thread)
{
    WarpState& state = warp_of(thread);
    Thread* warp = lane_0(thread);
    const unsigned lanes = thread->mask & state.alive;
    if (lanes & ~state.waiting) return false;
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1 && !same_operation(&warp[lane], thread)) return false;
    if (thread->exchange) thread->exchange(warp, lanes);
    state.waiting &= ~lanes;
    machine.time++;
    check_warp(warp, lanes);
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1) wake(&warp[lane]);
    return true;
}

[[noreturn]] void report_deadlock(const Thread* thread, const int count[])
{
    const Thread* warp = lane_0(thread);
    const unsigned lanes = thread->mask & warp_of(thread).alive;
    const Thread* other = nullptr;          // one of its lanes that is elsewhere
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1 && (warp[lane].state != IN_WARP || !same_operation(&warp[lane], thread)))
            other = &warp[lane];
    const bool in_warp = other->state == IN_WARP;
    fail_block("deadlock: thread %d waits in a warp operation (%s:%d, mask %08x) for thread %d, which waits %s "
               "(%s:%d); %d threads wait in warp operations, %d at __syncthreads, %d have exited",
               thread->id, thread->place.file, thread->place.line, thread->mask, other->id,
               in_warp ? "in another one" : "at __syncthreads", other->place.file, other->place.line, count[IN_WARP],
               count[AT_BARRIER], count[DONE]);
}

// Nobody can run: opens what all wait for, or ends the launch.
void release()
{
    int count[DONE + 1] = {};
    const Thread* one[DONE + 1] = {};
    for (int i = 0; i < scheduler.threads; i++) {
        const Thread* thread = &machine.threads[i];
        count[thread->state]++;
        one[thread->state] = thread;
        // its other lanes may have exited since
        if (thread->state == IN_WARP && complete(thread)) return;
    }
    if (count[IN_WARP]) report_deadlock(one[IN_WARP], count);
    const Place place = one[AT_BARRIER]->place;
    if (count[DONE])
        fail_block("barrier divergence: %d threads wait at __syncthreads (%s:%d), %d have exited (thread %d is one)",
                   count[AT_BARRIER], place.file, place.line, count[DONE], one[DONE]->id);
    machine.time++;
    scheduler.votes = 0;
    for (int i = 0; i < scheduler.threads; i++) {
        Thread* thread = &machine.threads[i];
        if (!same(thread->place, place))
            fail_block("barrier divergence: thread %d waits at __syncthreads of %s:%d, thread %d at that of %s:%d",
                       thread->id, thread->place.file, thread->place.line, one[AT_BARRIER]->id, place.file, place.line);
        scheduler.votes += thread->vote;
        thread->barrier_time = machine.time;
        wake(thread);
    }
}

void begin_round()
{
    scheduler.left = scheduler.threads;
    scheduler.round = new_order(scheduler.threads);
}

// The thread whose turn it is; none when all have exited.
Thread* next_thread()
{
    if (!scheduler.unfinished) return nullptr;
    for (;;) {
        if (!scheduler.runnable) {
            release();
            begin_round();
        }
        while (scheduler.left--) {
            Thread* thread = &machine.threads[scheduler.round.next()];
            if (thread->state == NEW || thread->state == READY) return thread;
        }
        begin_round();
    }
}

void exit_thread(Thread* thread)
{
    if (thread->copies) fail("exits with asynchronous copies that it has never waited for");
    thread->state = DONE;
    warp_of(thread).alive &= ~(1u << thread->lane);
    scheduler.unfinished--;
    scheduler.runnable--;
}

void begin(Thread* thread, char* stack, void* context)
{
    thread->state = READY;
    thread->stack = stack;
    thread->context = context;
    machine.current = thread;
}

// What runs on every stack: one new thread after the other. One that waits keeps the stack, until it has exited.
void run_threads()
{
    for (;;) {
        scheduler.body(scheduler.arguments);
        Thread* thread = machine.current;
        exit_thread(thread);
        Thread* next = next_thread();
        if (next && next->state == NEW) {
            begin(next, thread->stack, thread->context);
            continue;
        }
        scheduler.free_stacks[scheduler.free_count++] = thread->stack;
        machine.current = next;
        leave_to(next ? next->context : scheduler.host);
    }
}

void go_to(Thread* thread, void** save)
{
    if (thread->state == NEW) {
        char* stack = scheduler.free_stacks[--scheduler.free_count];
        begin(thread, stack, new_context(stack, run_threads));
    }
    machine.current = thread;
    switch_context(save, thread->context);
}

void suspend(Thread* thread)
{
    Thread* next = next_thread();
    if (next != thread) go_to(next, &thread->context);
}

}  // namespace

int block_barrier(int vote, Place here)
{
    Thread* thread = machine.current;
    thread->place = here;
    thread->vote = vote;
    thread->state = AT_BARRIER;
    scheduler.runnable--;
    suspend(thread);
    return scheduler.votes;
}

void warp_meet(unsigned mask, Exchange exchange, const void* give, void* take, Place here)
{
    Thread* thread = machine.current;
    if (!(mask >> thread->lane & 1))
        fail("lane %d is not in the mask %08x that it gives (%s:%d)", thread->lane, mask, here.file, here.line);
    thread->place = here;
    thread->mask = mask;
    thread->exchange = exchange;
    thread->give = give;
    thread->take = take;
    thread->state = IN_WARP;
    scheduler.runnable--;
    warp_of(thread).waiting |= 1u << thread->lane;
    if (!complete(thread)) suspend(thread);
}

// ---- blocks and launches

namespace {

void run_block()
{
    machine.time++;
    for (int i = 0; i < scheduler.threads; i++) {
        Thread* thread = &machine.threads[i];
        thread->state = NEW;
        thread->barrier_time = machine.time;
        thread->copies = 0;
        thread->group = 0;
    }
    for (int first = 0; first < scheduler.threads; first += WARP) {
        const int lanes = scheduler.threads - first;
        scheduler.warps[first / WARP] = {lanes < WARP ? (1u << lanes) - 1 : ~0u, 0};
    }
    scheduler.unfinished = scheduler.runnable = scheduler.threads;
    check_block();
    begin_round();
    go_to(next_thread(), &scheduler.host);          // comes back when all threads have exited, or one has failed
    machine.current = nullptr;
}

// All that does not change from block to block.
void prepare(const unsigned* block)
{
    for (unsigned i = 0; i < (unsigned)scheduler.threads; i++) {
        Thread& thread = machine.threads[i];
        thread.index = {i % block[0], i / block[0] % block[1], i / (block[0] * block[1])};
        thread.id = i;
        thread.lane = i % WARP;
    }
    scheduler.free_count = MAX_THREADS;
    for (int i = 0; i < MAX_THREADS; i++)
        scheduler.free_stacks[i] = stack_of(scheduler.stacks, MAX_THREADS - 1 - i);
}

}  // namespace

extern "C" SIM_EXPORT const char* sim_error() { return scheduler.message; }

// Runs a kernel. dynamic: memory for its dynamic shared array; order and seed: of threads and blocks, see Order;
// stacks: from sim_new_stacks. If not 0, sim_error says why.
extern "C" SIM_EXPORT int sim_launch(void (*body)(void**), void** arguments, const unsigned* grid,
                                     const unsigned* block, char* dynamic, size_t dynamic_bytes, int order,
                                     unsigned seed, char* stacks)
{
    machine.grid = {grid[0], grid[1], grid[2]};
    machine.block = {block[0], block[1], block[2]};
    machine.dynamic_shared = dynamic;
    machine.dynamic_bytes = dynamic_bytes;
    scheduler.body = body;
    scheduler.arguments = arguments;
    scheduler.threads = block[0] * block[1] * block[2];
    scheduler.order = order;
    scheduler.random = seed;
    scheduler.stacks = stacks;
    scheduler.host = host_context();
    scheduler.failed = false;
    prepare(block);
    check_launch();
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    Order order_of_blocks = new_order(blocks);
    for (unsigned i = 0; i < blocks && !scheduler.failed; i++) {
        const unsigned k = order_of_blocks.next();
        machine.block_index = {k % grid[0], k / grid[0] % grid[1], k / (grid[0] * grid[1])};
        run_block();
    }
    return !check_end() || scheduler.failed;
}

}  // namespace sim
