"""What the threads of a block did to memory, access by access: to look at coalescing and bank conflicts.

    with simulator.trace(block=0, kernel="activation.relu") as trace:
        cuda.launch("activation.relu", x, y, y.size, threads=y.size)

    trace.records       # every access, in the order in which the simulated GPU made them
    trace.steps(0)      # those of warp 0 side by side: what its 32 lanes touched in one instruction

A GPU executes an instruction for all lanes of a warp at once; the simulated one runs a thread as far as it goes, then
the next. To put the accesses side by side, the warp is run again, as a GPU would. For that the records also say which
basic blocks of the code each thread passed. Where a branch parts the lanes, a block is run only when no lane is left
that can still come to it in the same turn of the same loop; all that are there then go on together. So a lane that
leaves out a load (padding) or the rest of a turn (`continue`) waits for the others, and what lanes do in different
turns is not mixed up. (Diamos et al., "SIMD re-convergence at thread frontiers", MICRO 2011. A GPU lets lanes meet
where all ways from a branch do; where branches and loops are nested cleanly that is the same.)

With the offsets of a step: global memory is fetched in sectors of 32 bytes, so a step costs as many as there are
different `offset // 32` (arrays begin at a multiple of 256 bytes); shared memory has 32 banks of 4 bytes, so a step
conflicts where different words `offset // 4` have the same `offset // 4 % 32`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, groupby
from typing import Any, NamedTuple

import numpy as np

WARP = 32
RECORD = np.dtype([("thread", "u2"), ("region", "u2"), ("size", "u1"), ("access", "u1"), ("pc", "u4"),
                   ("barrier_time", "u4"), ("offset", "i8")], align=True)       # struct Record of check.h
ACCESSES = ("read", "write", "atomic")
PASSED = len(ACCESSES)      # a basic block was entered
START = 0       # where all ways begin: not the address of a basic block
SHARED = 4


class Place(NamedTuple):
    """Where an instruction is in the source: the line of the kernel's own file, and of the helper that it calls."""

    file: str
    line: int
    inner: str              # file:line of the innermost function, the same without a helper

    @property
    def words(self) -> str:
        """For a message."""
        own = f"{self.file}:{self.line}"
        return own if self.inner == own else f"{own} (in {self.inner})"


class Access(NamedTuple):
    """One access of one thread.

    launch: which of the trace's launches. thread: its number in the block. sequence: of the thread's accesses, from 0.
    file, line: where in the kernel's file. array: the name of the parameter, of the shared array or of the file's table
    or variable. shared: whether that is shared memory. offset, size: bytes, from the beginning of the array. kind:
    "read", "write" or "atomic". instruction: its address; one line may hold several. inner: file:line in the helper
    that is called there, the same line without one.
    """

    launch: int
    thread: int
    sequence: int
    file: str
    line: int
    array: str
    shared: bool
    offset: int
    size: int
    kind: str
    instruction: int
    inner: str

    @property
    def warp(self) -> int:
        """The thread's warp in the block."""
        return self.thread // WARP

    @property
    def lane(self) -> int:
        """The thread's place in its warp."""
        return self.thread % WARP

    @property
    def write(self) -> bool:
        """Whether it changes memory; an atomic operation does."""
        return self.kind != "read"


@dataclass(frozen=True)
class Step:
    """One instruction of a warp: the accesses of the lanes that took part, by lane."""

    accesses: tuple[Access, ...]

    @property
    def place(self) -> str:
        """file:line."""
        return f"{self.accesses[0].file}:{self.accesses[0].line}"

    @property
    def array(self) -> str:
        """What was touched."""
        return self.accesses[0].array

    @property
    def offsets(self) -> dict[int, int]:
        """Bytes from the beginning of the array, of each lane."""
        return {access.lane: access.offset for access in self.accesses}


@dataclass
class Trace:
    """What block number `block` did in every launch, or in those of `kernel`, in at most `limit` records."""

    block: int
    limit: int
    kernel: str | None = None
    launches: list[str] = field(default_factory=list)       # "file.kernel"
    truncated: bool = False
    _recorded: list[_Launch] = field(default_factory=list)

    @property
    def room(self) -> int:
        """How many more records there may be."""
        return max(self.limit - sum(len(launch.records) for launch in self._recorded), 0)

    @property
    def records(self) -> list[Access]:
        """All accesses."""
        return [access for launch in self._recorded for access in launch.accesses]

    def steps(self, warp: int = 0, launch: int = 0) -> list[Step]:
        """What a warp did, an instruction at a time."""
        return self._recorded[launch].steps(warp) if launch < len(self._recorded) else []

    def add(self, kernel: str, records: np.ndarray, count: int, regions: Sequence[Any],
            places: Mapping[int, Place]) -> None:
        """Take over the records of one launch, of `count` that there were."""
        arrays = [(region.name, bool(region.flags & SHARED)) for region in regions]
        self._recorded.append(_Launch(len(self.launches), records, arrays, places))
        self.launches.append(kernel)
        self.truncated |= count > len(records)


@dataclass
class _Launch:
    number: int
    records: np.ndarray         # of RECORD
    arrays: list[tuple[str, bool]]
    places: Mapping[int, Place]

    @cached_property
    def accesses(self) -> list[Access]:
        return self.made(self.records[self.records["access"] != PASSED])

    def made(self, records: np.ndarray) -> list[Access]:
        """Their accesses, from the first one of each thread on."""
        made, done = [], [0] * (1 + int(records["thread"].max(initial=0)))
        for thread, region, size, access, pc, _, offset in records.tolist():
            file, line, inner = self.places[pc]
            array, shared = self.arrays[region]
            made.append(Access(self.number, thread, done[thread], file, line, array, shared, offset, size,
                               ACCESSES[access], pc, inner))
            done[thread] += 1
        return made

    @cached_property
    def order(self) -> tuple[dict[int, int], dict[int, int]]:
        """The basic blocks that the block of threads passed, by `ordered`."""
        passed = self.records[self.records["access"] == PASSED]
        passed = passed[np.argsort(passed["thread"], kind="stable")]
        next_one = passed["thread"][1:] == passed["thread"][:-1]
        pairs = np.stack([passed["pc"][:-1][next_one], passed["pc"][1:][next_one]], 1)
        following: dict[int, set[int]] = {pc: set() for pc in np.unique(passed["pc"]).tolist()}
        for pc, next_pc in np.unique(pairs, axis=0).tolist():
            following[pc].add(next_pc)
        following[START] = set(passed["pc"][np.append(True, ~next_one)[:len(passed)]].tolist())
        return ordered(following)

    def steps(self, warp: int) -> list[Step]:
        """See Trace.steps."""
        mine = self.records[self.records["thread"] // WARP == warp]
        lanes = [_Lane(self, mine[mine["thread"] % WARP == lane]) for lane in range(WARP)]
        alike: dict[bytes, list[_Lane]] = {}                    # who pass the same blocks go together all the way
        for lane in lanes:
            alike.setdefault(lane.blocks.tobytes(), []).append(lane)
        parties = list(alike.values())
        busy = {block for lane in lanes for block in lane.busy}
        steps = []
        for block, moment in together([party[0].blocks.tolist() for party in parties], *self.order):
            if block not in busy:
                continue
            found: dict[tuple[Any, ...], list[Access]] = {}
            instructions: dict[int, int] = {}                   # of the block, in order: the same for all lanes
            for party, turn in moment:
                for lane in parties[party]:
                    for i in range(lane.first[turn], lane.first[turn + 1]):
                        access = lane.accesses[i]
                        # an address that is computed may lead lanes to different arrays; and nothing that has a
                        # barrier between is done together
                        instruction = instructions.setdefault(access.instruction, len(instructions))
                        key = instruction, ACCESSES.index(access.kind), access.array, lane.times[i]
                        found.setdefault(key, []).append(access)
            steps += [Step(tuple(sorted(found[key], key=lambda access: access.lane))) for key in sorted(found)]
        return steps


class _Lane:
    """What one thread did."""

    def __init__(self, launch: _Launch, records: np.ndarray) -> None:
        passed = records["access"] == PASSED
        self.accesses = launch.made(records[~passed])
        self.times = records["barrier_time"][~passed].tolist()  # of its last barrier, at each access
        self.blocks = records["pc"][passed]                     # the basic blocks that it passed
        first = np.append(np.cumsum(~passed)[passed], len(self.accesses))
        self.busy = set(self.blocks[np.diff(first) > 0].tolist())
        self.first = first.tolist()                             # the accesses in the i-th are those from first[i] on


def ordered(following: Mapping[int, set[int]]) -> tuple[dict[int, int], dict[int, int]]:
    """Number the nodes of a graph along its ways; its loops stay together.

    following: the successors of each node; all can be reached from START. Returns the number of each node, and a number
    for the end of each loop, by the node that the loop begins with, above those of all in the loop and below those of
    all that comes after it. Only from within a loop to its beginning does a way lead to a number that is not higher.
    """
    numbers: dict[int, int] = {}
    ends: dict[int, int] = {}
    number = count()

    def add(part: Mapping[int, set[int]]) -> None:
        nodes = sorted(part)
        bit = {node: 1 << i for i, node in enumerate(nodes)}
        reach = dict.fromkeys(nodes, 0)             # the nodes that ways lead to, as bits
        old: dict[int, int] = {}
        while old != reach:
            old = reach.copy()
            for node in reversed(nodes):            # most ways lead to higher addresses
                for after in part[node]:
                    reach[node] |= bit[after] | reach[after]
        # what leads to another node reaches more than that one; all nodes of a loop reach the same
        for key, group in groupby(sorted(nodes, key=lambda node: (-reach[node].bit_count(), reach[node], node)),
                                  key=reach.__getitem__):
            members = set(group)
            inside = {node for node in members if key & bit[node]}
            numbers.update(zip(sorted(members - inside), number))      # they lead to it
            if not inside:
                continue
            entered = {after for node, all_after in following.items() if node not in inside for after in all_after}
            first = min(entered & inside)
            add({node: part[node] & inside - {first} for node in inside})
            ends[first] = next(number)

    add(following)
    return numbers, ends


def together(ways: Sequence[Sequence[int]], numbers: Mapping[int, int],
             ends: Mapping[int, int]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Run a warp: each basic block that is passed, with who passes it together and how far that one is on its way.

    ways: of each lane, the blocks that it passes. numbers, ends: of `ordered`. It is always the lowest number's turn;
    who goes back to the beginning of a loop waits at its end for those that are in it.
    """
    turns = [0] * len(ways)
    waiting = {lane: numbers[way[0]] for lane, way in enumerate(ways) if way}
    while waiting:
        lowest = min(waiting.values())
        lanes = [lane for lane, number in waiting.items() if number == lowest]
        block = ways[lanes[0]][turns[lanes[0]]]
        yield block, [(lane, turns[lane]) for lane in lanes]
        for lane in lanes:
            turns[lane] += 1
            if turns[lane] == len(ways[lane]):
                del waiting[lane]
                continue
            after = ways[lane][turns[lane]]
            waiting[lane] = numbers[after] if numbers[after] > numbers[block] else ends[after]
