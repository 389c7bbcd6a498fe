"""Several callers' runs and promises at once, and nested ones."""

import threading
from functools import partial

import numpy as np
import pytest

from minunet import parallel
from tests.parallel.workers import WAIT, nothing_is_left


def in_threads(*callers):
    """What the callers return, each in a thread of its own."""
    results = [None] * len(callers)

    def call(number):
        results[number] = callers[number]()

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(len(callers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * WAIT)
        assert not thread.is_alive()
    return results


def test_callers_from_several_threads_get_their_own_results(use, blas):
    def caller(name):
        found = []
        for number in range(30):
            with parallel.overlap():
                promises = [parallel.later(lambda i=i: parallel.run(lambda job: (name, number, i, job), range(3)))
                            for i in range(3)]
                found += parallel.run(lambda job: (name, number, job), range(4))
                found += [promise.take() for promise in promises[::-1]]
        return found

    def expected(name):
        return [one for number in range(30) for one in (
            *((name, number, job) for job in range(4)),
            *([(name, number, i, job) for job in range(3)] for i in (2, 1, 0)))]

    use(3)
    assert in_threads(*(partial(caller, name) for name in range(4))) == [expected(name) for name in range(4)]
    assert nothing_is_left()


KINDS = ["run", "run", "promises", "promises", "overlap"]


def grow(rng, depth):
    """Something to compute: a leaf is a number, others have parts."""
    kind = KINDS[rng.integers(len(KINDS))] if depth else "leaf"
    if kind == "leaf":
        return kind, int(rng.integers(1, 500))
    return kind, [grow(rng, int(rng.integers(depth))) for _ in range(rng.integers(1, 6))]


def compute(tree):
    """A number; some leaves fail, and what has such a part is -1 (which of them fails first depends on threads)."""
    kind, parts = tree
    if kind == "leaf":
        if parts % 29 == 0:
            raise ArithmeticError
        return int(np.arange(parts).sum())
    try:
        if kind == "overlap":
            with parallel.overlap():
                return compute(("promises", parts))
        if kind == "promises":
            promises = [parallel.later(partial(compute, part)) for part in parts]
            found = [promise.take() if isinstance(promise, parallel.Promise) else promise for promise in promises]
        else:
            found = parallel.run(compute, parts)
    except ArithmeticError:
        return -1
    return sum(number * value for number, value in enumerate(found, 1))


@pytest.mark.parametrize("callers", [1, 3])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_nested_runs_and_promises_give_what_one_thread_gives(use, blas, count, callers):
    rng = np.random.default_rng(count)
    trees = [("overlap", [grow(rng, depth % 5) for _ in range(4)]) for depth in range(60)]
    use(1)
    expected = [compute(tree) for tree in trees]
    assert -1 in expected and len(set(expected)) > 20
    use(count)
    for results in in_threads(*[lambda: [compute(tree) for tree in trees]] * callers):
        assert results == expected
    assert nothing_is_left()
