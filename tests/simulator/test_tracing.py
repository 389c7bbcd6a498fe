"""The trace of a block: every access, and those of a warp side by side."""

import itertools

import numpy as np
import pytest

from minunet import simulator
from minunet.simulator.tracing import START, ordered, together
from tests.simulator.cases import CASES, launch, numbers, source
from tests.simulator.test_machine import COPY, HEAD, kernel

TRANSPOSE = HEAD + """transpose(const float* x, float* y)
{
    __shared__ float tile[8][8];
    const int row = threadIdx.x / 8, column = threadIdx.x % 8;
    tile[row][column] = x[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = tile[column][row];
}
"""


def test_every_access_is_recorded():
    x, y = numbers(128), numbers(128)
    with simulator.trace(block=1) as trace:
        launch("test", "transpose", TRANSPOSE, (2,), x, y)
    np.testing.assert_array_equal(y.reshape(2, 8, 8), x.reshape(2, 8, 8).transpose(0, 2, 1))
    assert trace.launches == ["test.transpose"] and not trace.truncated and len(trace.records) == 4 * 64
    of_thread_9 = [a for a in trace.records if a.thread == 9]
    assert [(a.sequence, a.line, a.array, a.shared, a.offset, a.size, a.kind) for a in of_thread_9] == [
        (0, 6, "x", False, 4 * 73, 4, "read"), (1, 6, "tile", True, 4 * 9, 4, "write"),
        (2, 8, "tile", True, 4 * 9, 4, "read"), (3, 8, "y", False, 4 * 73, 4, "write")]
    assert {(a.warp, a.lane, a.file, a.inner == f"test.cu:{a.line}", a.launch) for a in of_thread_9} == {
        (0, 9, "test.cu", True, 0)}


def test_steps_put_the_lanes_of_a_warp_side_by_side():
    with simulator.trace() as trace:
        launch("test", "transpose", TRANSPOSE, (1,), numbers(64), numbers(64))
    load, store, gather, result = trace.steps(warp=1)
    assert [step.array for step in (load, store, gather, result)] == ["x", "tile", "tile", "y"]
    assert load.offsets == {lane: 4 * (32 + lane) for lane in range(32)} and load.place == "test.cu:6"
    assert gather.offsets == {lane: 4 * (lane % 8 * 8 + 4 + lane // 8) for lane in range(32)}
    assert not load.accesses[0].write and result.accesses[0].write


def steps_of(text, *arguments, warp=0):
    """Of the array x: for each step its lanes, each with the element that it touched."""
    with simulator.trace() as trace:
        launch("test", "test", text, (1,), *arguments)
    return [{lane: offset // 4 for lane, offset in step.offsets.items()} for step in trace.steps(warp)
            if step.array == "x"]


def lanes_where(touched, *loops):
    """What a warp does that goes through loops together: a step for each turn in which any lane takes part."""
    steps = [{lane: touched(lane, *turns) for lane in range(32) if touched(lane, *turns) is not None}
             for turns in itertools.product(*map(range, loops))]
    return [step for step in steps if step]


READ = "const float* x, float* y"


def test_a_loop_is_a_step_a_turn():
    text = kernel("float sum = 0; for (int k = 0; k <= i % 3; k++) sum += x[i * 3 + k]; y[i] = sum;", READ)
    steps = steps_of(text, numbers(192), numbers(64))
    assert [len(step) for step in steps] == [32, 21, 10]
    assert steps == lanes_where(lambda lane, k: 3 * lane + k if k <= lane % 3 else None, 3)


@pytest.mark.parametrize("guard, skipped", [
    ("lane + k < n", lambda lane, k: lane + k < 31),                # the n-th read is of another turn in each lane
    ("(lane + k) % 2", lambda lane, k: (lane + k) % 2),             # half of the lanes in every turn
    ("k && (lane < 4 || lane == 9 - k)", lambda lane, k: k and (lane < 4 or lane == 9 - k)),
])
def test_a_lane_that_leaves_out_a_turn_waits_for_the_others(guard, skipped):
    text = kernel(f"const int lane = i % 32; float sum = 0; for (int k = 0; k < 6; k++) {{ if ({guard}) continue; "
                  "sum += x[32 * k + lane]; } y[i] = sum;", READ + ", int n")
    steps = steps_of(text, numbers(192), numbers(64), 31)
    assert steps == lanes_where(lambda lane, k: None if skipped(lane, k) else 32 * k + lane, 6)


def test_nested_loops_with_continue_and_other_trip_counts_in_each_lane():
    text = kernel("""const int lane = i % 32;
    float sum = 0;
    for (int a = 0; a <= lane % 3; a++) {
        if (a == 1 && lane % 2) continue;
        for (int b = 0; b < 1 + (lane + a) % 4; b++) {
            if (b == lane % 5) continue;
            sum += x[a * 128 + b * 32 + lane];
        }
        if (lane == 7 && a == 0) break;
    }
    y[i] = sum;""", READ)

    def touched(lane, a, b):
        left = lane == 7 and a > 0
        if a <= lane % 3 and not (a == 1 and lane % 2) and not left and b < 1 + (lane + a) % 4 and b != lane % 5:
            return a * 128 + b * 32 + lane

    assert steps_of(text, numbers(384), numbers(64)) == lanes_where(touched, 3, 4)


def test_the_sides_of_a_branch_are_apart_and_meet_behind_it():
    text = kernel("float v; if (i % 4 == 0) v = x[i]; else if (i % 4 == 1) v = -x[i]; else v = 1; "
                  "y[i] = v * x[i + 64];", READ)
    steps = steps_of(text, numbers(128), numbers(64), warp=1)
    zeros, ones = ({lane: 32 + lane for lane in range(rest, 32, 4)} for rest in (0, 1))
    assert steps in ([zeros, ones, every(96)], [ones, zeros, every(96)])


def every(first):
    return {lane: first + lane for lane in range(32)}


def test_a_padding_of_zeros_does_not_shift_the_reads_behind_it():
    text = kernel("float sum = 0; for (int k = -1; k < 3; k++) { const int at = i % 32 * 2 + k; "
                  "sum += at >= 0 && at < 64 ? x[at] : 0.f; } y[i] = sum;", READ)
    steps = steps_of(text, numbers(64), numbers(64))
    assert steps == lanes_where(lambda lane, k: 2 * lane + k - 1 if 0 <= 2 * lane + k - 1 < 64 else None, 4)


@pytest.mark.parametrize("inlining", ["__device__", "__device__ __forceinline__", "__device__ __noinline__"])
def test_helpers_barriers_and_warp_operations_do_not_mix_turns_up(inlining):
    helper = inlining + """ float take(const float* x, int at, bool wanted)
{
    if (!wanted) return 0;
    return at % 2 ? x[at] : 2 * x[at];
}
"""
    text = kernel("""__shared__ float s[64];
    const int lane = i % 32;
    float sum = 0;
    for (int k = 0; k < 3; k++) {
        sum += take(x, 32 * k + lane, lane >= 8 * k);
        if (lane < 8) sum += __shfl_xor_sync(0xff, sum, 1 << k);
        __syncthreads();
        if ((lane + k) % 3 || k == 2) s[i] = sum;
        __syncwarp();
        if (k == 2 && !__any_sync(~0u, lane == 3)) continue;
        __syncthreads();
    }
    y[i] = s[i ^ 32] + take(x, 96 + lane, true);""", READ, before=helper)
    odd_and_even = [{lane: 32 * k + lane for lane in range(8 * k if k < 3 else 0, 32) if lane % 2 == odd}
                    for k in range(4) for odd in (0, 1)]
    with simulator.trace() as trace:
        launch("test", "test", text, (1,), numbers(128), numbers(64))
    steps = trace.steps()
    reads = [{a.lane: a.offset // 4 for a in step.accesses} for step in steps if step.array == "x"]
    order = [step.array for step in steps]
    assert sorted(map(repr, reads)) == sorted(map(repr, odd_and_even))
    assert order == ["x", "x", "s"] * 3 + ["s", "x", "x", "y"]
    assert [sorted(step.offsets) for step in steps if step.array == "s"] == [
        [lane for lane in range(32) if (lane + k) % 3 or k > 1] for k in range(4)]


def test_nothing_is_done_together_that_has_a_barrier_between():
    """Half of a warp waits in the first turn, the other half in the second: allowed, for the barrier is the same."""
    text = kernel("for (int k = 0; k < 2; k++) { x[k * 64 + i] = k; if (k == i % 32 / 16) __syncthreads(); }",
                  "float* x")
    first, second, third = steps_of(text, numbers(128))
    assert first == every(0)
    assert {*second} | {*third} == {*range(32)} and {*second} in ({*range(16)}, {*range(16, 32)})


@pytest.mark.parametrize("case", CASES)
def test_steps_are_all_accesses_each_thread_in_its_order(case):
    with simulator.trace() as trace:
        CASES[case](source(case))
    for warp in {access.warp for access in trace.records}:
        done = [access for step in trace.steps(warp) for access in step.accesses]
        assert sorted(done) == sorted(a for a in trace.records if a.warp == warp and a.launch == 0)
        for lane in range(32):
            assert (np.diff([access.sequence for access in done if access.lane == lane]) == 1).all()
        assert all(len({access.lane for access in step.accesses}) == len(step.accesses) for step in trace.steps(warp))


def test_the_order_of_blocks_keeps_loops_together():
    """One loop in another, their blocks mixed up; a way out of both (7 to 3) and one back from the middle (5 to 9)."""
    following = {START: {8}, 8: {9}, 9: {5, 2}, 5: {7, 9}, 7: {7, 6, 3}, 6: {9}, 2: {3}, 3: set()}
    numbers, ends = ordered(following)
    order = sorted(following, key=numbers.__getitem__)
    assert order[:3] == [START, 8, 9] and order[-2:] == [2, 3] and set(ends) == {9, 7}
    assert numbers[5] < numbers[7] < ends[7] < numbers[6] < ends[9] < numbers[2]
    # the second lane leaves out 7 in its first turn; the third breaks there, and waits at 3
    ways = [8, 9, 5, 7, 7, 6, 9, 5, 7, 6, 9, 2, 3], [8, 9, 5, 9, 5, 7, 6, 9, 2, 3], [8, 9, 5, 7, 3]
    assert [(block, [lane for lane, _ in moment]) for block, moment in together(ways, numbers, ends)] == [
        (8, [0, 1, 2]), (9, [0, 1, 2]), (5, [0, 1, 2]), (7, [0, 2]), (7, [0]), (6, [0]),
        (9, [0, 1]), (5, [0, 1]), (7, [0, 1]), (6, [0, 1]), (9, [0, 1]), (2, [0, 1]), (3, [0, 1, 2])]


def test_sixteen_bytes_are_one_access():
    text = kernel("((float4*)y)[i] = ((const float4*)x)[i];", "const float* x, float* y")
    with simulator.trace() as trace:
        launch("test", "test", text, (1,), numbers(256), numbers(256))
    assert {a.size for a in trace.records} == {16} and len(trace.records) == 128
    text = kernel("const float4 v = ((const float4*)x)[i]; y[i] = v.x + v.y + v.z + v.w;", "const float* x, float* y")
    with simulator.trace() as trace:
        launch("test", "test", text, (1,), numbers(256), numbers(64))
    assert [(a.array, a.size) for a in trace.records[:2]] == [("x", 16), ("y", 4)]


def test_atomics_and_asynchronous_copies_are_in_it_once():
    text = kernel("__shared__ __align__(16) float s[256]; cp_async16(&s[4 * i], &x[4 * i], i % 2); cp_async_commit(); "
                  "cp_async_wait<0>(); atomicAdd(&n[0], 1);", "const float* x, INOUT int* n")
    with simulator.trace() as trace:
        launch("test", "test", text, (1,), numbers(256), np.zeros(1, np.int32))
    read, write, atomic = trace.steps(1)
    assert [(step.array, step.accesses[0].kind, step.accesses[0].size) for step in (read, write, atomic)] == [
        ("x", "read", 16), ("s", "write", 16), ("n", "atomic", 4)]
    assert read.offsets == {lane: 512 + 16 * lane for lane in range(1, 32, 2)}
    assert write.offsets == {lane: 512 + 16 * lane for lane in range(32)}
    assert len(trace.records) == 32 + 64 + 64 and {a.line for a in trace.records} == {6}


def test_what_a_helper_does_belongs_to_the_line_that_calls_it():
    helper = """#line 7 "helper.cuh"
__device__ __forceinline__ float take(const float* x, int i) { return x[i]; }
__device__ __forceinline__ float twice(const float* x, int i) { return take(x, i) + x[i + 1]; }
#line 1 "test.cu\""""
    text = kernel("y[i] = twice(x, i) + x[i + 2];", READ, before=helper)
    with simulator.trace() as trace:
        launch("test", "test", text, (1,), numbers(66), numbers(64))
    assert [(step.place, step.accesses[0].inner) for step in trace.steps()] == [
        ("test.cu:5", "helper.cuh:7"), ("test.cu:5", "helper.cuh:8"), ("test.cu:5", "test.cu:5"),
        ("test.cu:5", "test.cu:5")]
    with pytest.raises(simulator.SimulatorError, match=r"element 63 .*, at test.cu:5 \(in helper.cuh:7\)$"):
        with simulator.checking(order=1):
            launch("test", "test", text, (1,), numbers(40), numbers(64))


def test_the_limit_is_of_all_launches_together():
    with simulator.trace(limit=500) as trace:
        for _ in range(2):
            launch("test", "copy", COPY, (1,), numbers(64), numbers(64), 64)
    assert 128 < len(trace.records) < 256 and trace.truncated and trace.launches == ["test.copy"] * 2
    assert [len(trace.steps(0, launch=i)) for i in (0, 1)] == [2, 2]
    with simulator.trace(block=5) as trace:
        launch("test", "copy", COPY, (1,), numbers(64), numbers(64), 64)
    assert trace.records == [] and trace.steps() == [] and not trace.truncated


def test_the_launches_of_one_kernel_alone():
    text = COPY + kernel("y[i] += 1;")              # the second reads what is undefined
    with simulator.trace(kernel="test.copy") as trace:
        for y in numbers(64), numbers(128):
            launch("test", "test", text, (1,), numbers(64))
            launch("test", "copy", text, (1,), numbers(64), y, 64)
    assert trace.launches == ["test.copy"] * 2 and {a.array for a in trace.records} == {"x", "y"}
    assert [step.place for step in trace.steps(1, launch=1)] == ["test.cu:5"] * 2
    with pytest.raises(simulator.SimulatorError, match="uninitialised y"), simulator.trace(kernel="test.test"):
        launch("test", "test", text, (1,), numbers(64))
