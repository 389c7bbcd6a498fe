"""Promises: who makes them and when, exceptions, what is forgotten, the context."""

import contextvars
import threading
import weakref
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from minunet import parallel
from tests.parallel.workers import (
    MAKERS,
    WAIT,
    all_busy,
    meet,
    nothing_is_left,
    promised,
    wait_for,
)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("step", [1, -1, 3])
def test_promises_are_taken_in_any_order(use, count, step):
    use(count)
    results = [0, None, 2, None, 4, None, 6, None]
    with parallel.overlap():
        promises = [parallel.later(lambda result=result: result) for result in results]
        order = sorted(range(8), key=lambda i: i * step % 8)
        taken = {i: promises[i] if count == 1 else promises[i].take() for i in order}
    assert [taken[i] for i in range(8)] == results and nothing_is_left()


def test_another_thread_makes_it_while_the_caller_is_busy_outside_a_run(use):
    use(2)
    with parallel.overlap():
        for _ in range(100):
            made = threading.Event()
            promise = parallel.later(lambda: (made.set(), threading.get_ident())[1])
            wait_for(made)
            assert promise.take() != threading.get_ident()


def test_all_other_threads_make_promises_at_the_same_time(use):
    use(4)
    together = threading.Barrier(4)
    with parallel.overlap():
        promises = [parallel.later(lambda: (together.wait(WAIT), threading.get_ident())[1]) for _ in range(3)]
        together.wait(WAIT)
        assert len({threading.get_ident(), *(promise.take() for promise in promises)}) == 4


def test_the_taker_makes_what_nobody_has_begun():
    with all_busy():
        promises = [parallel.later(threading.get_ident) for _ in range(3)]
        for left in (2, 1, 0):
            assert promises[left].take() == threading.get_ident()
            assert [*parallel._team.promises] == promises[:left]        # it makes no other


def test_the_first_promise_is_made_first():
    made, all_made = [], threading.Event()
    with all_busy() as release:
        for number in range(5):
            parallel.later(partial(made.append, number))
        parallel.later(all_made.set)
        release(1)
        wait_for(all_made)
    assert made == [0, 1, 2, 3, 4]


def test_the_taker_makes_another_promise_while_it_waits():
    with all_busy() as release:
        begun, made = threading.Event(), threading.Event()
        first = parallel.later(lambda: (begun.set(), made.wait(WAIT))[1])
        release(1)
        wait_for(begun)
        second = parallel.later(lambda: (made.set(), threading.get_ident())[1])     # nobody else can make it
        assert first.take() and second.take() == threading.get_ident()


def test_the_taker_helps_with_the_runs_of_a_promise_that_another_makes():
    """A run with as many jobs as there are threads, of which each waits for all others."""
    with all_busy() as release:
        count = len(parallel._team.workers)
        begun, job = threading.Event(), meet(count + 1)
        promise = parallel.later(lambda: parallel.run(lambda number: (begun.set(), job(number))[1], range(count + 1)))
        release(count)
        wait_for(begun)
        assert threading.get_ident() in promise.take()


def test_who_waits_for_the_last_job_of_a_run_helps_with_the_runs_of_promises():
    with all_busy(2) as release:
        seats = len(parallel._team.workers) + 1
        begun, joined, made, together = *(threading.Event() for _ in range(3)), meet(2)

        def background(number):
            begun.set()
            return together(number) if number < 2 else None

        def last_of_all(number):
            if number == 0:                                 # of the caller
                release(1)
                wait_for(joined)
            if number == 1:                                 # of another, until the promise has been made
                joined.set()
                wait_for(made)

        promise = parallel.later(lambda: (parallel.run(background, range(seats)), made.set())[0])
        release(1)
        wait_for(begun)
        parallel.run(last_of_all, range(seats))
        assert threading.get_ident() in promise.take()


def test_runs_that_somebody_waits_for_come_before_those_of_promises_and_these_before_promises():
    """All three are there when one worker goes on, and does all of it. What comes first was the last to be given."""
    with all_busy() as release:
        seats = len(parallel._team.workers) + 1
        order, all_done, begun = [], threading.Event(), threading.Event()

        def do(what, number=1):
            if number == 0:                                 # of the caller of a run, who does no other
                if what == "foreground":
                    release(1)
                begun.set()
                wait_for(all_done)
                return
            order.append(what)
            if len(order) == 2 * seats + 1:
                all_done.set()

        def other_caller():
            with parallel.overlap():
                parallel.later(lambda: parallel.run(partial(do, "background"), range(seats + 1))).take()

        thread = threading.Thread(target=other_caller)
        thread.start()
        wait_for(begun)
        promise = parallel.later(partial(do, "promise"))
        parallel.run(partial(do, "foreground"), range(seats + 1))
        thread.join(WAIT)
        promise.take()
    assert order == ["foreground"] * seats + ["background"] * seats + ["promise"]


# a promise is taken once

@MAKERS
def test_a_promise_that_was_taken_cannot_be_taken_again(maker):
    for function in (lambda: 5, lambda: {}["key"]):
        with promised(function, maker) as promise:
            with suppress(KeyError):
                promise.take()
            with pytest.raises(RuntimeError, match="this promise was taken before; a promise is taken once, within"):
                promise.take()
        with pytest.raises(RuntimeError, match="this promise was taken before"):
            promise.take()


@MAKERS
def test_a_promise_that_was_forgotten_cannot_be_taken(maker):
    with promised(lambda: 5, maker) as promise:
        pass
    with pytest.raises(RuntimeError, match="this promise was forgotten before; a promise is taken once, within"):
        promise.take()


# called at once

def test_elsewhere_a_function_is_called_at_once(use):
    def at_once():
        return parallel.later(threading.get_ident) == threading.get_ident()

    use(2)
    assert at_once()                                        # outside
    with parallel.overlap():
        assert not at_once()
        assert parallel.run(lambda job: at_once(), range(4)) == [True] * 4
        other = []
        thread = threading.Thread(target=lambda: other.append(at_once()))      # which is in no `overlap`
        thread.start()
        thread.join(WAIT)
        assert other == [True]
        use(1)
        assert at_once()                                    # nobody else is there
    use(2)
    assert at_once() and nothing_is_left()


def test_the_exception_of_what_is_called_at_once_comes_at_once(use):
    use(1)
    with parallel.overlap(), pytest.raises(ZeroDivisionError):
        parallel.later(lambda: 1 / 0)


# exceptions

@MAKERS
@pytest.mark.parametrize("error", [ZeroDivisionError, IndexError, KeyboardInterrupt, SystemExit])
def test_an_exception_comes_out_where_the_promise_is_taken(maker, error):
    def fail():
        raise error("once")

    with promised(fail, maker) as promise:
        with pytest.raises(error, match="once"):
            promise.take()
        assert not parallel._team.promises
    with all_busy():                                        # no worker has ended
        pass


@MAKERS
def test_an_exception_of_a_promises_run_comes_out_where_it_is_taken(maker):
    with promised(lambda: parallel.run({}.__getitem__, range(5)), maker) as promise, pytest.raises(KeyError):
        promise.take()
    assert nothing_is_left()


@MAKERS
@pytest.mark.parametrize("fail", [lambda array: array.no_such_name,
                                  lambda array: parallel.run(lambda job: array.no_such_name, range(3))])
def test_an_exception_keeps_no_memory(maker, fail, no_collector):
    def attempt():
        array = np.ones(10)
        with promised(partial(fail, array), maker) as promise, pytest.raises(AttributeError):
            promise.take()
        return weakref.ref(array)

    assert attempt()() is None


# the end

def test_a_promise_that_nobody_has_taken_is_forgotten():
    made = []
    with all_busy():
        with parallel.overlap():
            for number in range(3):
                promise = parallel.later(partial(made.append, number))
        assert not parallel._team.promises
        del promise
    assert nothing_is_left() and made == []


def test_after_an_exception_promises_are_forgotten():
    made = []
    with all_busy():
        with pytest.raises(KeyError), parallel.overlap():
            parallel.later(partial(made.append, 0))
            raise KeyError
        assert not parallel._team.promises
    assert nothing_is_left() and made == []


def test_a_promise_that_is_being_made_at_the_end_is_made():
    ended, made = threading.Event(), threading.Event()
    with promised(lambda: (ended.wait(WAIT), made.set()), "other"):
        pass
    assert not made.is_set()
    ended.set()
    wait_for(made)
    assert nothing_is_left()


def test_an_overlap_within_another_forgets_its_own_promises():
    made = []
    with all_busy():
        with parallel.overlap():
            outer = parallel.later(lambda: "outer")
            with parallel.overlap():
                inner = parallel.later(lambda: "inner")
                parallel.later(partial(made.append, "forgotten"))
                assert inner.take() == "inner"
            after = parallel.later(lambda: "after")
            assert len(parallel._team.promises) == 2
            assert (after.take(), outer.take()) == ("after", "outer")
        assert not parallel._team.promises
    assert made == []


def test_an_overlap_ends_in_the_thread_that_it_began_in(use):
    use(2)
    inside, end = threading.Barrier(2), threading.Event()

    def other():
        with parallel.overlap():
            inside.wait(WAIT)
            wait_for(end)

    thread = threading.Thread(target=other)
    thread.start()
    with parallel.overlap():
        inside.wait(WAIT)
        promise = parallel.later(lambda: 5)
        end.set()
        thread.join(WAIT)
        assert isinstance(promise, parallel.Promise) and promise.take() == 5
        assert isinstance(parallel.later(lambda: 6), parallel.Promise)
    assert parallel.later(lambda: 7) == 7


# the caller's context

@MAKERS
def test_a_promise_is_made_in_the_context_in_which_it_was_given(maker):
    def errstate(job=None):
        return np.float64(1) / np.zeros(2), np.geterr()["divide"]

    with all_busy() as release:
        with np.errstate(divide="ignore"):
            promise = parallel.later(lambda: [errstate(), *parallel.run(errstate, range(3))])
        begun = threading.Event()
        parallel.later(begun.set)
        if maker == "other":
            release(1)
            wait_for(begun)
        assert np.geterr()["divide"] != "ignore"
        assert [found[1] for found in promise.take()] == ["ignore"] * 4


@MAKERS
def test_what_a_promise_sets_in_its_context_stays_there(maker):
    variable = contextvars.ContextVar("variable", default="before")
    with promised(lambda: variable.set("within"), maker) as promise:
        promise.take()
        assert variable.get() == "before"
