// The checks: is every access to memory inside an array, of a value that was written, and not in a race?
//
// GCC's -fsanitize=thread puts a call before every load and store, -fsanitize=bounds-strict and others one where an
// index or an address goes wrong, and for a trace -fsanitize-coverage=trace-pc one at every basic block of the code.
// Those calls are meant for GCC's own libraries. Here these are not linked; the calls end in the functions of this
// file.
//
// Each array of the launch is a Region; for every few bytes of it a Cell remembers who wrote and who read it last, and
// when. Time is the machine's count of barriers, warp operations and blocks. One access is ordered before another, of
// another thread, only if both threads have waited together in between: at a barrier of their block, or in an
// operation of their warp. If not, and one of them writes, the two could come in either order on a GPU: that is a
// race. It is found in whichever order the threads ran. Blocks never wait for each other.

#pragma once

#include "scheduler.h"

namespace sim {
namespace {

enum Flags { CONSTANT = 1, DEFINED = 2, SHARED = 4 };       // may not be written; has values already; is the block's

struct Visit {
    unsigned time;              // 0: none yet
    unsigned block;
    unsigned pc;                // of the instruction, from the beginning of the library
    short thread;
    bool atomic;                // of a write
};

// How far the readers since the last write are apart: what the next writer must have waited for.
enum Readers { ONE_WARP, ONE_BLOCK, MANY_BLOCKS };

struct Cell {
    Visit write;
    Visit read;                 // the latest
    unsigned lanes;             // readers, if they are of one warp
    unsigned char readers;
    bool defined;
};

struct Region {
    size_t start, bytes;
    int item;                   // bytes of an element, for messages
    int grain;                  // bytes of a cell
    int flags;
    int number;                 // by which machine.py knows it
    bool used;                  // by this launch
    const char* name;
    Cell* cells;
};

struct Checker {
    Region* regions;            // by their addresses
    int count, capacity;
    Region* latest;             // the one found last: the next access is often to it
    unsigned block;             // the number of the present one
    unsigned block_start;       // when it began
    unsigned launch_start;
    unsigned known[MAX_THREADS][WARP];      // [i][lane]: until when thread i knows what that lane of its warp has done
};

Checker checker;

// ---- a record of what one block did: all its accesses, and its way through the code

constexpr int PASSED = ATOMIC + 1;      // not an access: a thread has entered a basic block of the code

struct Record {                 // tracing.py reads these
    unsigned short thread;
    unsigned short region;
    unsigned char size;         // bytes
    unsigned char access;       // READ, WRITE, ATOMIC, PASSED
    unsigned pc;
    unsigned barrier_time;      // of the thread
    long long offset;           // bytes from the beginning of the array
};

struct Tracer {
    Record* records;
    long long limit, count;     // count may exceed the limit: so many there would have been
    unsigned block;
};

Tracer tracer;

void trace(const Region* region, size_t offset, size_t bytes, int access, unsigned pc)
{
    const Thread* thread = machine.current;
    if (!tracer.records || tracer.block != checker.block || !thread || tracer.count++ >= tracer.limit) return;
    const int number = region ? region->number : 0;
    tracer.records[tracer.count - 1] = {(unsigned short)thread->id, (unsigned short)number, (unsigned char)bytes,
                                        (unsigned char)access, pc, thread->barrier_time, (long long)offset};
}

// ---- places in the code

extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));    // the linker's name of the first byte

// machine.py replaces [pc X] by file and line. The address is the one to return to: the access is the byte before.
unsigned code_offset(const void* pc) { return (unsigned)((const char*)pc - __ehdr_start - 1); }

// ---- regions

Region* find(size_t address, size_t bytes)
{
    Region* region = checker.latest;
    if (region && address - region->start < region->bytes && address + bytes <= region->start + region->bytes)
        return region;
    int low = 0;
    int high = checker.count;
    while (low < high) {                    // the last region that begins at the address or before
        const int middle = (low + high) / 2;
        if (checker.regions[middle].start <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low) return nullptr;
    region = &checker.regions[low - 1];
    if (address + bytes > region->start + region->bytes) return nullptr;
    return checker.latest = region;
}

[[noreturn]] void fail_outside(size_t address, size_t bytes, Access access, unsigned pc)
{
    const char* what = access == READ ? "read" : "write";
    const Region* nearest = nullptr;
    size_t least = 1 << 20;                 // further away is not a slip of an index
    for (int i = 0; i < checker.count; i++) {
        const Region& region = checker.regions[i];
        const size_t end = region.start + region.bytes;
        const size_t distance = address < region.start ? region.start - address : address + bytes - end;
        if (distance >= least) continue;
        least = distance;
        nearest = &region;
    }
    if (!nearest) fail("out-of-bounds %zu-byte %s, of an address in no array, at [pc %x]", bytes, what, pc);
    const long long offset = (long long)(address - nearest->start);
    const long long item = nearest->item;
    const long long element = offset < 0 ? -((item - 1 - offset) / item) : offset / item;
    fail("out-of-bounds %zu-byte %s %s %s: element %lld (byte %lld) of %lld (%zu bytes), at [pc %x]", bytes, what,
         offset < 0 ? "before the beginning of" : "past the end of", nearest->name, element, offset,
         nearest->bytes / item, nearest->bytes, pc);
}

// ---- order and races

// Has the thread waited together with that visitor since? (A thread knows all that it did itself.)
bool ordered(const Visit& visit, const Thread* thread)
{
    if (!visit.time) return true;
    if (visit.time < checker.block_start) return false;         // another block
    if (visit.thread == thread->id || visit.time < thread->barrier_time) return true;
    return visit.thread / WARP == thread->id / WARP && visit.time < checker.known[thread->id][visit.thread % WARP];
}

// The same for all readers since the last write.
bool readers_ordered(const Cell& cell, const Thread* thread)
{
    const Visit& read = cell.read;
    if (!read.time) return true;
    if (cell.readers == MANY_BLOCKS || read.time < checker.block_start) return false;
    if (read.time < thread->barrier_time) return true;
    if (cell.readers == ONE_BLOCK || read.thread / WARP != thread->id / WARP) return false;
    const unsigned others = cell.lanes & ~(1u << thread->lane);
    for (int lane = 0; lane < WARP; lane++)
        if (others >> lane & 1 && read.time >= checker.known[thread->id][lane]) return false;
    return true;
}

void add_reader(Cell& cell, const Visit& me, const Thread* thread)
{
    if (readers_ordered(cell, thread)) {    // who is ordered after me is ordered after them
        cell.readers = ONE_WARP;
        cell.lanes = 0;
    } else if (cell.readers == MANY_BLOCKS || cell.read.time < checker.block_start) {
        cell.readers = MANY_BLOCKS;
    } else if (cell.readers == ONE_BLOCK || cell.read.thread / WARP != thread->id / WARP) {
        cell.readers = ONE_BLOCK;
    }
    cell.lanes |= 1u << thread->lane;
    cell.read = me;
}

[[noreturn]] void fail_race(const Region* region, size_t byte, Access access, const Visit& other, const char* did,
                            unsigned pc)
{
    fail("race on %s, element %zu (byte %zu): %s at [pc %x], %s by block %u thread %d at [pc %x], with no barrier "
         "between", region->name, byte / region->item, byte, access == READ ? "read" : "written", pc, did, other.block,
         (int)other.thread, other.pc);
}

}  // namespace

void check(const void* pointer, size_t bytes, Access access, const void* pointer_to_code, bool recorded)
{
    Thread* thread = machine.current;
    const size_t address = (size_t)pointer;
    if (!thread || address - (size_t)thread->stack < STACK) return;         // a variable of its own
    const unsigned pc = code_offset(pointer_to_code);
    Region* region = find(address, bytes);
    if (!region) fail_outside(address, bytes, access, pc);
    const size_t offset = address - region->start;
    if (access != READ && region->flags & CONSTANT)
        fail("write to const %s, element %zu (byte %zu), at [pc %x]", region->name, offset / region->item, offset, pc);
    region->used = true;
    if (!recorded) trace(region, offset, bytes, access, pc);
    const Visit me = {machine.time, checker.block, pc, (short)thread->id, access == ATOMIC};
    const size_t first = offset / region->grain;
    const size_t last = (offset + bytes - 1) / region->grain;
    for (size_t i = first; i <= last; i++) {
        Cell& cell = region->cells[i];
        const size_t byte = i == first ? offset : i * region->grain;
        if (access != WRITE && !cell.defined && !(region->flags & DEFINED))
            fail("read of uninitialised %s, element %zu (byte %zu), at [pc %x]", region->name, byte / region->item,
                 byte, pc);
        const bool both_atomic = access == ATOMIC && cell.write.atomic;
        if (!both_atomic && !ordered(cell.write, thread))
            fail_race(region, byte, access, cell.write, "written", pc);
        if (access == READ) {
            if (!(region->flags & CONSTANT)) add_reader(cell, me, thread);
            continue;
        }
        if (!readers_ordered(cell, thread)) fail_race(region, byte, access, cell.read, "read", pc);
        cell.write = me;
        cell.read.time = 0;
        cell.lanes = 0;
        cell.readers = ONE_WARP;
        cell.defined = true;
    }
}

// The target of an asynchronous copy that is under way.
void check_undefined(const void* pointer, size_t bytes)
{
    const Region* region = find((size_t)pointer, bytes);
    const size_t offset = (size_t)pointer - region->start;
    for (size_t i = offset / region->grain; i <= (offset + bytes - 1) / region->grain; i++) {
        region->cells[i].defined = false;
        region->cells[i].write.time = 0;
    }
}

// ---- what the scheduler calls

void check_launch()
{
    for (int i = 1; i < checker.count; i++)             // few, and nearly in order
        for (int k = i; k && checker.regions[k].start < checker.regions[k - 1].start; k--) {
            const Region lower = checker.regions[k];
            checker.regions[k] = checker.regions[k - 1];
            checker.regions[k - 1] = lower;
        }
    for (int i = 0; i < checker.count; i++) {
        Region& region = checker.regions[i];
        region.cells = (Cell*)__builtin_calloc(region.bytes / region.grain + 1, sizeof(Cell));
    }
    checker.latest = nullptr;
}

void check_block()
{
    const uint3 index = machine.block_index;
    checker.block = (index.z * machine.grid.y + index.y) * machine.grid.x + index.x;
    checker.block_start = machine.time;
    for (int i = 0; i < checker.count; i++) {
        Region& region = checker.regions[i];
        if (!(region.flags & SHARED && region.used)) continue;
        // nothing is known of shared memory when a block begins
        __builtin_memset(region.cells, 0, (region.bytes / region.grain + 1) * sizeof(Cell));
    }
    __builtin_memset(checker.known, 0, sizeof checker.known);
}

// After a warp operation each of its lanes knows what any of them knew, and all that they have done.
void check_warp(const Thread* warp, unsigned lanes)
{
    unsigned all[WARP] = {};
    for (int lane = 0; lane < WARP; lane++) {
        if (!(lanes >> lane & 1)) continue;
        for (int i = 0; i < WARP; i++) {
            const unsigned known = checker.known[warp[lane].id][i];
            if (known > all[i]) all[i] = known;
        }
    }
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1) all[lane] = machine.time;
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1) __builtin_memcpy(checker.known[warp[lane].id], all, sizeof all);
}

bool check_end()
{
    size_t statically = 0;
    for (int i = 0; i < checker.count; i++) {
        const Region& region = checker.regions[i];
        const bool is_dynamic = region.start == (size_t)machine.dynamic_shared;
        if (region.flags & SHARED && region.used && !is_dynamic) statically += region.bytes;
        __builtin_free(region.cells);
    }
    checker.count = 0;
    const size_t limit = 48 << 10;
    if (statically <= limit || scheduler.failed) return true;
    __builtin_sprintf(scheduler.message, "the kernel uses %zu bytes in __shared__ arrays; a block has %zu, and more "
                      "only as dynamic shared memory", statically, limit);
    return false;
}

// ---- what machine.py calls before a launch

// An array that the kernel may touch. The name must live as long as the launch.
extern "C" SIM_EXPORT void sim_region(size_t start, size_t bytes, int item, int grain, int flags, const char* name)
{
    if (checker.count == checker.capacity) {
        checker.capacity = 2 * checker.capacity + 64;
        checker.regions = (Region*)__builtin_realloc(checker.regions, checker.capacity * sizeof(Region));
    }
    checker.regions[checker.count] = {start, bytes, item, grain, flags, checker.count, false, name, nullptr};
    checker.count++;
}

// What that block does goes to the records, as much as there is room for.
extern "C" SIM_EXPORT void sim_trace(Record* records, long long limit, unsigned block)
{
    tracer = {records, limit, 0, block};
}

// How many records there would be; ends the tracing.
extern "C" SIM_EXPORT long long sim_traced()
{
    tracer.records = nullptr;
    return tracer.count;
}

// ---- the calls that the compiler puts in: before a load or a store of so many bytes

#pragma GCC visibility push(hidden)
extern "C" {

#define SIM_HOOKS(BYTES) \
    void __tsan_read##BYTES(void* p) { check(p, BYTES, READ, __builtin_return_address(0)); } \
    void __tsan_write##BYTES(void* p) { check(p, BYTES, WRITE, __builtin_return_address(0)); } \
    void __tsan_unaligned_read##BYTES(void* p) { check(p, BYTES, READ, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##BYTES(void* p) { check(p, BYTES, WRITE, __builtin_return_address(0)); }

SIM_HOOKS(1)
SIM_HOOKS(2)
SIM_HOOKS(4)
SIM_HOOKS(8)
SIM_HOOKS(16)

void __tsan_read_range(void* p, size_t bytes) { check(p, bytes, READ, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { check(p, bytes, WRITE, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// Where a trace is compiled, at the beginning of every basic block.
void __sanitizer_cov_trace_pc() { trace(nullptr, 0, 0, PASSED, code_offset(__builtin_return_address(0))); }

// ---- and where C++ itself is broken, with a description that begins with the place

struct Description {
    const char* file;
    unsigned line, column;
};

struct Type {
    unsigned short kind, info;
    char name[1];               // in quotes
};

struct IndexDescription : Description {
    const Type* array;
    const Type* index;
};

struct PointerDescription : Description {
    const Type* type;
    unsigned char log_alignment;
    unsigned char kind;
};

void __ubsan_handle_out_of_bounds(const IndexDescription* at, void* index)
{
    fail("out-of-bounds index %lld of a %s, at %s:%u", (long long)(size_t)index, at->array->name, at->file, at->line);
}

void __ubsan_handle_type_mismatch_v1(const PointerDescription* at, void* pointer)
{
    const size_t alignment = (size_t)1 << at->log_alignment;
    fail("misaligned address: %zu bytes past a multiple of %zu, for a %s, at %s:%u", (size_t)pointer % alignment,
         alignment, at->type->name, at->file, at->line);
}

#define SIM_ARITHMETIC(NAME, WHAT) \
    void __ubsan_handle_##NAME(const Description* at, void*, void*) { fail(WHAT " at %s:%u", at->file, at->line); }

SIM_ARITHMETIC(add_overflow, "overflow of a signed integer in +")
SIM_ARITHMETIC(sub_overflow, "overflow of a signed integer in -")
SIM_ARITHMETIC(mul_overflow, "overflow of a signed integer in *")
SIM_ARITHMETIC(negate_overflow, "overflow of a signed integer in -")
SIM_ARITHMETIC(divrem_overflow, "division of an integer by zero, or overflow,")
SIM_ARITHMETIC(shift_out_of_bounds, "shift by more bits than there are")

}
#pragma GCC visibility pop

}  // namespace sim
