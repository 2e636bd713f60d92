"""The team of processes: any number of them gives the same results, and none outlives a run, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minifit.lab import parallel
from minifit.lab.parallel import Team, WorkerLost, available, shared

ROOT = Path(__file__).resolve().parents[2]
COUNTS = pytest.mark.parametrize("count", [1, 2, 3])

# A process that makes a team of 3, says who they are, and goes on working until it is ended.
WORKING = """
import os, time
from minifit.lab.parallel import Team

with Team(3, {"who": lambda job: os.getpid(), "wait": time.sleep}) as team:
    print(*team.run("who", range(3)), flush=True)
    while True:
        team.run("wait", [JOBS])
"""


def square(job):
    return job * job


def heed_ctrl_c():
    """What a shell starts in the background, tests among it, ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_working(jobs):
    """The process, in a group of its own, and the ids of all its team."""
    code = WORKING.replace("JOBS", f"*{jobs}")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, start_new_session=True, preexec_fn=heed_ctrl_c, **pipes
    )
    return process, [int(pid) for pid in process.stdout.readline().split()]


def running(pids):
    """Those of the processes that have not ended; what only waits to be collected has."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            alive.append(pid)
    return alive


def left_after(pids, seconds):
    deadline = time.monotonic() + seconds
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return running(pids)


@COUNTS
@pytest.mark.parametrize("jobs", [0, 1, 2, 7])
def test_results_come_in_the_order_of_the_jobs(count, jobs):
    with Team(count, {"square": square, "negate": lambda job: -job}) as team:
        assert team.run("square", range(jobs)) == [i * i for i in range(jobs)]
        assert team.run("negate", iter(range(jobs))) == [-i for i in range(jobs)]


@COUNTS
def test_a_team_is_as_many_processes_as_it_says_and_this_is_one_of_them(count):
    with Team(count, {"who": lambda job: os.getpid()}) as team:
        who = team.run("who", range(2 * count))
        assert who[:count] == who[count:] and who[0] == os.getpid() and len(set(who)) == count
    assert left_after(who[1:count], 1) == []


@COUNTS
def test_shared_memory_is_seen_both_ways(count):
    asked, answers = shared((3,), np.float64), shared((6, 3))

    def answer(job):
        answers[job] = asked + job

    with Team(count, {"answer": answer}) as team:
        for value in (1, 5):
            asked[...] = value
            team.run("answer", range(6))
            np.testing.assert_array_equal(answers, value + np.tile(np.arange(6)[:, None], 3))


def test_shared_memory_is_zeros_of_the_shape_and_type_that_can_be_written():
    for shape, dtype in (((2, 3), np.float32), ((), np.float64), ((0, 3), np.int16)):
        array = shared(shape, dtype)
        assert array.shape == shape and array.dtype == dtype and not array.any()
        array[...] = 1


def test_nothing_of_it_is_a_file():
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    memory = shared((1000,))
    with Team(2, {"fill": lambda job: memory.fill(job)}) as team:
        team.run("fill", [1, 2])
        during = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert during <= before


@pytest.mark.parametrize("bad", [1, 2])
def test_a_worker_that_raises_stops_the_run_with_its_traceback(bad):
    def divide(job):
        return 1 / (job - bad)

    started = time.monotonic()
    with pytest.raises(RuntimeError) as caught, Team(3, {"divide": divide, "who": lambda job: os.getpid()}) as team:
        who = team.run("who", range(3))
        team.run("divide", [0, 1, 2] if bad == 1 else [0, 4, 2])
    assert "ZeroDivisionError" in str(caught.value) and "in divide" in str(caught.value)
    assert left_after(who[1:], 1) == [] and time.monotonic() - started < 10


def test_a_job_of_this_process_raises_as_it_is():
    with pytest.raises(ZeroDivisionError), Team(2, {"divide": lambda job: 1 / job}) as team:
        team.run("divide", [0, 1])


def test_a_worker_that_is_killed_at_work_is_an_error_and_not_a_wait():
    def work(job):
        if job:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerLost, match="a worker process was ended by SIGKILL"), Team(3, {"work": work}) as team:
        team.run("work", [0, 0, 1])


def test_a_worker_that_is_killed_between_jobs_is_the_same_error():
    functions = {"who": lambda job: os.getpid()}
    with pytest.raises(WorkerLost, match="a worker process was ended by SIGKILL"), Team(2, functions) as team:
        os.kill(team.run("who", [0, 1])[1], signal.SIGKILL)
        team.processes[0].join()
        for _ in range(2):
            team.run("who", [0, 1])


def test_a_worker_that_exits_is_an_error_that_gives_its_status():
    with (
        pytest.raises(WorkerLost, match="ended with status 7"),
        Team(2, {"leave": lambda job: job and os._exit(7)}) as t,
    ):
        t.run("leave", [0, 1])


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="who runs is read from /proc")
@pytest.mark.parametrize("jobs", [[0.001] * 3, [0.2] * 300], ids=["short jobs", "a long list of jobs"])
def test_no_worker_outlives_a_parent_that_is_killed(jobs):
    process, team = start_working(jobs)
    assert len(set(team)) == 3 and team[0] == process.pid
    time.sleep(0.1)
    process.kill()
    process.wait()  # and not for its output: the workers hold that as well
    assert left_after(team, 5) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="who runs is read from /proc")
def test_ctrl_c_ends_all_of_a_team_and_only_the_parent_speaks():
    process, team = start_working([0.01] * 3)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert left_after(team, 5) == []
    assert said.count("Traceback") == 1 and said.rstrip().endswith("KeyboardInterrupt")


def test_leaving_by_an_exception_does_not_wait_for_the_jobs_of_others():
    started = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        Team(2, {"work": lambda job: time.sleep(30) if job else interrupt()}) as team,
    ):
        team.run("work", [0, 1])
    assert time.monotonic() - started < 10


def interrupt():
    raise KeyboardInterrupt


def blas_threads(job=None):
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@COUNTS
def test_blas_has_one_thread_in_each_process_and_its_own_number_again_afterwards(count):
    with threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        if 1 in before or not before:
            pytest.skip("no BLAS with threads that threadpoolctl knows")
        with Team(count, {"threads": blas_threads}) as team:
            assert team.run("threads", range(count)) == [[1] * len(before)] * count
        assert blas_threads() == before
        with pytest.raises(KeyboardInterrupt), Team(count, {}):
            interrupt()
        assert blas_threads() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_available_cores_are_those_this_process_is_bound_to():
    cores = os.sched_getaffinity(0)
    assert 1 <= available() <= len(cores)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert available() == 1
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("?", 8)]
)
def test_a_containers_quota_counts_as_well(quota, cores, monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("builtins.open", lambda path, _open=open: _open(tmp_path / Path(path).name))
    assert available() == cores
