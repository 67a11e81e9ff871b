"""_team.py and _parts.py: every part is done once, by whoever is there; nobody waits for ever."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import tinyvae_kernels as kernels
from tinyvae_kernels import _dispatch, _team, _threads
from tinyvae_kernels._llvm import machine_code

KERNELS = Path(__file__).parents[1]

# A job that counts how often each part was done, and takes some time for it.
COUNTING = """
define i32 @job(ptr %counts, i64 %k, i64 %count) {
entry:
  %place = getelementptr i64, ptr %counts, i64 %k
  %old = atomicrmw add ptr %place, i64 1 monotonic
  %long = getelementptr i64, ptr %counts, i64 %count
  %turns = load i64, ptr %long
  br label %turn
turn:
  %i = phi i64 [ 0, %entry ], [ %j, %turn ]
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %turns
  br i1 %more, label %turn, label %end
end:
  %last = icmp eq i64 %k, 1000
  %status = zext i1 %last to i32
  ret i32 %status
}
"""


@pytest.fixture(scope="module")
def job():
    engine = machine_code(COUNTING)
    yield engine.get_function_address("job")
    engine.close()


@pytest.fixture(scope="module", params=[0, 1, 3])
def team(request):
    """More helpers than cores, too: then some come late, and some not at all."""
    return _team.Team(request.param)


def counted(team, job, count, turns, helpers=None):
    """How often each part was done, and what the team said."""
    counts = np.zeros(count + 1, np.int64)
    counts[count] = turns
    helpers = team.helpers if helpers is None else helpers
    return counts, team._call(job, counts.ctypes.data, count, helpers)


def test_every_part_is_done_once(team, job):
    rng = np.random.default_rng(0)
    for turns in (0, 100, 20_000):
        for count in rng.integers(1, 40, 200).tolist():
            counts, failed = counted(team, job, count, turns)
            assert failed == 0
            np.testing.assert_array_equal(counts[:count], 1)


def state(team, i=0):
    return ctypes.c_int64.from_address(team.helpers_at + 128 * i).value


def asleep(team):
    """Wait until all helpers have given up looking for a job."""
    deadline = time.monotonic() + 600
    while any(state(team, i) != 2 for i in range(team.helpers)):
        assert time.monotonic() < deadline, "a helper without a job must sleep"


def test_helpers_sleep_when_there_is_no_job_and_come_again(team, job):
    for turns in (0, 100, 20_000, 1_000_000):
        asleep(team)
        counts, _ = counted(team, job, 9, turns)
        np.testing.assert_array_equal(counts[:9], 1)


def test_fewer_helpers_than_there_are(team, job):
    counts, _ = counted(team, job, 7, 100, helpers=min(1, team.helpers))
    np.testing.assert_array_equal(counts[:7], 1)


def test_a_failure_of_one_part_is_reported_and_the_others_are_done(team, job):
    counts, failed = counted(team, job, 1003, 0)
    assert failed == 1
    np.testing.assert_array_equal(counts[:1003], 1)
    assert counted(team, job, 5, 0)[1] == 0


def test_callers_at_the_same_time(team, job):
    found = []

    def work():
        for _ in range(300):
            counts, failed = counted(team, job, 5, 500)
            found.append(failed == 0 and bool((counts[:5] == 1).all()))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 1200


# ----------------------------------------------------------------------------------------- kernels
@pytest.fixture
def always_worth_it(monkeypatch):
    for name in ("WORTH_A_THREAD", "WORTH_WAKING"):
        monkeypatch.setattr(_threads, name, 1)
        monkeypatch.setattr(_threads, f"{name}_LIGHT", 1)


@_dispatch.jit_rows.sharing("wanted")
def _picky_rows(rows, wanted, out):
    for i in range(rows.size):
        if rows[i] == wanted[0]:
            raise ZeroDivisionError("row of bad luck")
        out[i] = 2 * rows[i]


def test_an_exception_in_a_part_reaches_the_caller(always_worth_it):
    rows, out = np.arange(1000.0), np.zeros(1000)
    with kernels.threads(2):
        _picky_rows(rows, np.array([-1.0]), out)
        np.testing.assert_array_equal(out, 2 * rows)
        with pytest.raises(ZeroDivisionError, match="row of bad luck"):
            _picky_rows(rows, np.array([999.0]), out)


def test_arrays_that_change_their_type_from_call_to_call(always_worth_it, rng):
    """Each type has machine code of its own; the layout in memory is part of the type."""
    a = rng.standard_normal((2, 40, 6))
    read_only = a.copy()
    read_only.flags.writeable = False
    with kernels.threads(2):
        for mu, logvar in (a, a.astype(np.float32), read_only, a[:, ::2, ::3], a):
            found, _ = kernels.gaussian_kl_forward(mu, logvar)
            with kernels.threads(1):
                expected, _ = kernels.gaussian_kl_forward(mu, logvar)
            np.testing.assert_array_equal(found, expected)


def test_kernels_in_several_threads(always_worth_it, rng):
    a, found = rng.standard_normal((64, 50)), []
    expected, _ = kernels.gaussian_kl_forward(a, a)

    def work():
        found.extend(kernels.gaussian_kl_forward(a, a)[0] for _ in range(200))

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 600
    assert all(np.array_equal(kl, expected) for kl in found)


def test_without_a_team_a_pool_does_the_parts(always_worth_it, monkeypatch, rng):
    a = rng.standard_normal((64, 50))
    expected = kernels.gaussian_kl_forward(a, a)[0], kernels.philox_normal(5001, seed=1)
    monkeypatch.setattr(_threads, "team", lambda: None)
    found = kernels.gaussian_kl_forward(a, a)[0], kernels.philox_normal(5001, seed=1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ZeroDivisionError, match="row of bad luck"):
        _picky_rows(np.arange(9.0), np.array([8.0]), np.zeros(9))


def test_small_jobs_are_shared_when_they_follow_each_other(monkeypatch):
    now = [1.0]
    monkeypatch.setattr(_threads.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(_threads, "_latest", 0.0)
    small, large = (np.zeros((100, n)) for n in (600, 10_000))
    assert _threads.worth_it((large,))
    now[0] += 1
    assert not _threads.worth_it((small,))
    now[0] += 10  # as long as a job may take
    _threads.ended()
    now[0] += _threads.RECENT / 2
    assert _threads.worth_it((small,))
    now[0] += _threads.RECENT
    assert not _threads.worth_it((small,))


def test_the_parts_depend_on_sizes_and_threads_alone():
    """Where each part has a sum of its own, their number decides the last bits."""
    array = np.zeros((100, 600))
    with kernels.threads(2):
        assert _threads.parts((array,)) == 2 * _threads.PARTS
        assert _threads.parts((array,), each=1) == 2
        assert _threads.parts((array,), light=True) == 1
        assert _threads.parts((array[:1],)) == 1
    with kernels.threads(1):
        assert _threads.parts((array,)) == 1


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system cannot fork")
def test_a_child_process_makes_a_team_of_its_own():
    code = f"""
import os, sys; sys.path.insert(0, {str(KERNELS)!r})
import numpy as np, tinyvae_kernels as kernels
a = np.full((2000, 300), 0.5, np.float32)
with kernels.threads(2):
    expected = kernels.gaussian_kl_forward(a, a)[0]
    child = os.fork()
    found = kernels.gaussian_kl_forward(a, a)[0]
assert np.array_equal(found, expected)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=1200)


# ---------------------------------------------------------------------------------------- programs
def recorded(function, *args):
    program = kernels.Program()
    with program.record():
        function(*args)
    program.compile()
    return program


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("alone", [False, True])
def test_programs_at_once(count, alone, monkeypatch):
    if alone:
        monkeypatch.setattr(_threads, "team", lambda: None)
    rows, outs = np.arange(6.0), np.zeros((count, 6))
    programs = [recorded(_picky_rows, rows, np.array([-1.0]), out) for out in outs]
    outs[:] = 0
    with kernels.threads(1):  # the programs are the threads
        kernels.run_programs(programs)
    np.testing.assert_array_equal(outs, np.tile(2 * rows, (count, 1)))


def test_a_program_that_fails_names_the_kernel():
    wanted, out = np.array([-1.0]), np.zeros(6)
    good, bad = (recorded(_picky_rows, np.arange(6.0), wanted, out) for _ in range(2))
    wanted[0] = 3
    with pytest.raises(RuntimeError, match="kernel _picky_rows failed"):
        kernels.run_programs([good, bad])
