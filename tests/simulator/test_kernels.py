"""The tests' kernels give the right result, plain and checked in three orders; with a fault planted they do not."""

import re
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import pytest

from minunet import simulator
from tests.simulator.cases import CASES, source
from tests.simulator.mutants import MUTANTS, found


@pytest.mark.parametrize("case", CASES)
def test_results_are_right_and_nothing_is_complained_of(case):
    CASES[case](source(case))
    for order in (0, 1, 2):
        with simulator.checking(order, seed=3):
            CASES[case](source(case))


@pytest.fixture(scope="module")
def elsewhere():
    """Calls a function in another process, which a fault may take down."""
    pools = []

    def call(f, argument):
        if not pools:
            pools.append(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        try:
            return pools[0].submit(f, argument).result(timeout=120)
        except BrokenProcessPool:
            pools.pop()
            return "the process died"

    yield call
    for pool in pools:
        pool.shutdown()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.case}: {m.name}")
def test_planted_faults_are_found(mutant, elsewhere):
    message = elsewhere(found, mutant)
    assert re.search(mutant.found, message), f"found {message!r}, not {mutant.found!r}"


def test_there_are_mutants_enough():
    assert len(MUTANTS) == 44
