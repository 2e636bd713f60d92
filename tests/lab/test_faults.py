"""Every fault is one line with a status: cases of faults.py, signals, refusals of the system, surroundings."""

import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import faults
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from machine import machine

from minifit import UserError, files, schema, stages
from minifit.lab import cli, parallel, records, runner, train, training
from minifit.lab.parallel import Team

ROOT = Path(__file__).resolve().parents[2]
EACH = 29  # of the many cases of records and weights the suite tries every 29th; faults.py tries all


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a finished run, a half-trained one and their results; for reading only."""
    folder = tmp_path_factory.mktemp("faults")
    faults.build(folder)
    return folder


def some(kind):
    """A part of the cases of a kind, the same every day."""
    found = [case for case in faults.cases() if case.kind == kind]
    order = random.Random(0).sample(found, len(found))
    return order[::EACH] if kind in ("records", "weights") else order[::7]


CHOSEN = [case for kind in ("records", "weights", "files", "limits") for case in some(kind)]
CHOSEN += [case for case in faults.cases() if case.kind == "causes" or "an edited" in case.name]
CHOSEN += [case for case in faults.cases() if "another hint" in case.name or "optimizer empty" in case.name]


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_a_fault_is_one_line(case, base, tmp_path):
    status, said = faults.tried(case, base, tmp_path / "copy")
    assert faults.verdict(case, status, said) == ""


WORDS = st.text('aä"[]{},:1', max_size=20)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
READERS = {
    "config.json": lambda path: records.read_config(path.parent),
    "summary.json": records.read_summary,
    "metrics.jsonl": records.read_metrics,
    "results.json": records.read_results,
}


@pytest.mark.parametrize("name", READERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(value=TREES, draw=st.data())
def test_any_value_at_any_place_of_a_record_is_read_or_is_one_line(name, value, draw, base, tmp_path):
    source = base / ("results/digits/default" if name == "results.json" else faults.RUN) / name
    tree = json.loads(source.read_text().splitlines()[0] if name == "metrics.jsonl" else source.read_text())
    place = []
    inner = tree
    while isinstance(inner, dict | list) and inner and (not place or draw.draw(st.booleans())):
        place.append(draw.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner)))))
        inner = inner[place[-1]]
    (tmp_path / name).write_text(json.dumps(faults.changed(tree, place, value)) + "\n")
    with suppress(UserError):
        READERS[name](tmp_path / name)


@given(text=WORDS | TREES.map(json.dumps))
def test_any_text_is_parsed_or_is_a_value_error(text):
    with suppress(ValueError):
        schema.parse(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=TREES, place=st.sampled_from([*stages.RECORD]))
def test_any_value_in_a_stages_record_is_read_or_is_one_line(value, place, base, tmp_path):
    record, groups = files.load(base / faults.HALF / "fitnet.h5")
    faults.save(tmp_path / "a.h5", record | {place: value}, lambda file: faults.fill(file, groups))
    with suppress(UserError):
        stages.load(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("value", "wanted", "said"),
    [
        ({"a": 1}, {"a": schema.TEXT}, "a is 1; wanted a text"),
        ({}, {"a": schema.TEXT}, "a is missing; wanted a text"),
        ({"b": 1}, {"a?": schema.TEXT}, "it has 'b', which is not known"),
        ({"a": [1, "x"]}, {"a": [schema.COUNT]}, r"a\[1\] is \"x\"; wanted a whole number from 0"),
        ({"a": True}, {"*": schema.NUMBER}, "a is true; wanted a number"),
        ([], {"a": schema.ANY}, r"it is \[\]; wanted a dictionary"),
        ({"a": "x"}, {"a": (None, [schema.COUNT])}, 'a is "x"; wanted null or a list'),
    ],
)
def test_what_does_not_fit_a_schema_is_named_with_its_place(value, wanted, said):
    with pytest.raises(ValueError, match=said):
        schema.check(value, wanted)


@pytest.mark.parametrize("text", ["NaN", "[1e999]", "-Infinity", '{"a": 1, "a": 2}', "[" * 40 + "]" * 40, "9" * 50])
def test_what_no_record_holds_is_refused_when_it_is_parsed(text):
    with pytest.raises(ValueError):
        schema.parse(text)


def test_whatever_is_done_to_a_run_every_line_leads_back_to_its_bytes(base):
    profile = settings.default
    steps, examples = (30, profile.max_examples) if profile.max_examples > 50 else (6, 2)
    run_state_machine_as_test(machine(base), settings=settings(max_examples=examples, stateful_step_count=steps))


# Signals.


def test_ctrl_c_during_a_write_is_remembered_and_the_file_is_whole(tmp_path):
    def write(file):
        file.write(b"the first half, ")
        with suppress(KeyboardInterrupt):  # as a library's callback does
            signal.raise_signal(signal.SIGINT)
        file.write(b"and the second")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            files.write_atomically(tmp_path / "a", write)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "a").read_bytes() == b"the first half, and the second" and len(os.listdir(tmp_path)) == 1


def test_ctrl_c_that_python_drops_stops_training_at_the_next_step(base, tmp_path, monkeypatch):
    gradient, steps = training.DataParallel.gradient, []

    def dropped(self, *arguments):
        steps.append(1)
        if len(steps) == 2:
            with suppress(KeyboardInterrupt):  # as in a destructor
                signal.raise_signal(signal.SIGINT)
        return gradient(self, *arguments)

    monkeypatch.setattr(training.DataParallel, "gradient", dropped)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with faults.small():
            status, _ = faults.answer(("digits", "--runs", "new", "--workers", "1", "--stage", "teacher"))
    finally:
        signal.signal(signal.SIGINT, before)
        parallel.stopping.clear()
    assert status == 130 and len(steps) <= 4  # two more are those that the plan measures


def test_a_stopped_worker_does_not_hang_the_end(monkeypatch):
    monkeypatch.setattr(parallel, "PATIENCE", 0.2)
    for reason in (None, KeyboardInterrupt):
        began = time.monotonic()
        with suppress(KeyboardInterrupt), Team(2, {"who": lambda job: os.getpid()}) as team:
            os.kill(team.run("who", [0, 1])[1], signal.SIGSTOP)
            if reason:
                raise reason
        assert time.monotonic() - began < 5


# What the system refuses.


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 3 TiB"), "run.py: memory ran out (Unable to allocate 3 TiB)"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "the system refuses one more process or more memory"),
        (OSError(28, "No space left on device", "x.h5"), "run.py: x.h5: No space left on device"),
        (ImportError("a.so: cannot map segment"), "run.py: a library cannot be loaded (a.so: cannot map segment)"),
    ],
)
def test_what_the_system_refuses_is_one_line_and_status_1(error, said, monkeypatch, capsys):
    def refused(words):
        raise error

    monkeypatch.setattr(cli, "audit", refused)
    assert cli.main(["audit"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("words", [["run.py"], ["-m", "minifit.lab"]])
def test_too_little_memory_is_one_line(words, tmp_path):
    def little():
        resource.setrlimit(resource.RLIMIT_AS, (170 * 2**20,) * 2)  # the imports would hang

    words = [sys.executable, *words, "digits", "--runs", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, preexec_fn=little, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("run.py: ") and "memory" in done.stderr.lower(), done.stderr


STARTED = """
import runpy, sys
from threadpoolctl import threadpool_info
sys.argv = ["run.py", "networks", "--help"]
try:
    runpy.run_path("run.py", run_name="__main__")
finally:
    print("threads:", {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
"""


def test_openblas_has_one_thread_from_the_start():
    """With more, OpenBLAS itself speaks, and stops the command, where few processes are allowed."""
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", STARTED], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "threads: {1}"


def test_a_library_that_cannot_be_loaded_is_one_line(tmp_path):
    (tmp_path / "h5py.py").write_text("raise ImportError('a.so: cannot map segment')")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "run.py"], cwd=ROOT, env=env, capture_output=True, text=True)
    line = "run.py: cannot start: a.so: cannot map segment; pip install -e . installs what is needed\n"
    assert (done.returncode, done.stderr) == (1, line)


TOO_FEW = """
import os, resource
from pathlib import Path
import faults
from minifit.lab.parallel import Team
faults.build(Path("."))
with Team(2, {"abs": abs}) as team:
    team.run("abs", [0, 1])  # now all is imported: nobody may not read where Python lies
if not os.getuid():
    try:
        os.setuid(65534)  # nobody's limit counts, and the administrator has none
    except OSError:
        raise SystemExit(77)  # a container without that user
for processes in 2, 1:
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, 2))
    with faults.small():
        print(faults.answer(("digits", "--runs", f"with {processes}", "--workers", "3")), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_too_few_processes_are_one_line_and_leave_none(tmp_path):
    tmp_path.chmod(0o777)
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{Path(faults.__file__).parent}"}
    done = subprocess.run(
        [sys.executable, "-c", TOO_FEW], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )  # to the end of the last process that could write
    if done.returncode == 77:
        pytest.skip("the administrator of this container may be nobody else")
    line = "run.py: Resource temporarily unavailable: the system refuses one more process or more memory"
    assert (done.stdout, done.stderr) == (f"{(1, [line])}\n" * 2, "")


def test_a_worker_without_memory_is_one_line():
    def work(job):
        if job:
            raise MemoryError

    with pytest.raises(MemoryError, match="a worker process ran out of memory"), Team(2, {"work": work}) as team:
        team.run("work", [0, 1])


def test_a_fork_that_is_refused_leaves_no_worker(monkeypatch):
    processes, start = [], parallel.multiprocessing.get_context("fork").Process.start

    def refuse(self):
        if processes:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        processes.append(self)
        start(self)

    monkeypatch.setattr(parallel.multiprocessing.get_context("fork").Process, "start", refuse)
    with pytest.raises(BlockingIOError), Team(3, {}):
        pass
    assert len(processes) == 1 and not processes[0].is_alive()


def test_no_more_workers_are_forked_than_there_are_lanes(base, monkeypatch):
    monkeypatch.chdir(base)
    with faults.small():
        asked = train.parse("digits", ["--workers", "3000"])
        dataset = train.dataset_of("digits", asked)
        made = train.run_of("digits", asked, train.config_of(asked), 0, dataset, Path("new"))
    assert made.workers == training.LANES


def test_shared_numbers_beyond_memory_are_one_line():
    with pytest.raises(UserError, match=r"take about .* GiB, and this machine has"):
        parallel.shared((2**45,))


# Surroundings, in processes of their own.

SMALL = """
import sys
sys.path[:0] = sys.argv[1:3]
import faults
with faults.small():
    sys.exit(faults.cli.main(sys.argv[3:]))
"""


def started(folder, words, **more):
    options = {"capture_output": True, "text": True, "cwd": folder, "timeout": 60} | more
    options["env"] = os.environ | {"OPENBLAS_NUM_THREADS": "1"} | more.get("env", {})
    return subprocess.run([sys.executable, "-c", SMALL, str(ROOT), str(ROOT / "tests" / "lab"), *words], **options)


def test_closed_streams_a_notebook_ascii_one_column_and_umlauts_hinder_no_run(tmp_path):
    (tmp_path / "so ein Käse").mkdir()
    env = {"MPLBACKEND": "module://nowhere", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    env |= {"COLUMNS": "1", "PYTHONCOERCECLOCALE": "0"}
    words = ["digits", "--runs", "Läufe hier", "--stage", "teacher", "--workers", "1"]

    def close():
        for number in range(3):
            os.close(number)

    about = {"env": env, "capture_output": False, "preexec_fn": close}
    assert started(tmp_path / "so ein Käse", words, **about).returncode == 0
    folder = tmp_path / "so ein Käse" / "Läufe hier" / "digits" / "seed0"
    assert stages.load_record(folder / "teacher.h5")["finished"] and len(records.read_summary(folder / "summary.json"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_standard_output_is_one_line(tmp_path):
    with open("/dev/full", "w") as full:
        done = started(tmp_path, ["networks"], capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "run.py: standard output: No space left on device\n")


def test_python_without_docstrings_is_one_line(monkeypatch, base):
    monkeypatch.setattr(runner.describe.__globals__["inspect"], "getdoc", lambda what: None)
    with faults.small():
        monkeypatch.chdir(base)
        status, said = faults.answer(("digits", "--runs", "new", "--workers", "1", "--stage", "teacher"))
    assert status == 2 and len(said) == 1 and "PYTHONOPTIMIZE=2" in said[0]


def test_what_is_read_is_a_file_and_what_is_written_follows_no_link(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError):
            files.opened(path)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to("victim")
    for name in ("link", "pipe", "."):
        with pytest.raises(OSError):
            files.open_own(tmp_path / name, os.O_WRONLY)
    os.link(tmp_path / "victim", tmp_path / ".a.tmp")
    files.write_atomically(tmp_path / "a", lambda file: file.write(b"new"))
    assert (tmp_path / "victim").read_text() == "precious" and (tmp_path / "a").read_bytes() == b"new"


def test_a_writer_that_comes_between_the_opening_and_the_lock_keeps_its_file(tmp_path, monkeypatch):
    def late(descriptor, how, lock=fcntl.flock):
        if (tmp_path / ".a.tmp").exists() and not (tmp_path / "a").exists():
            (tmp_path / ".a.tmp").write_bytes(b"theirs")
            os.rename(tmp_path / ".a.tmp", tmp_path / "a")
        lock(descriptor, how)

    def ours(file):
        assert (tmp_path / "a").read_bytes() == b"theirs"
        file.write(b"ours")

    monkeypatch.setattr(fcntl, "flock", late)
    files.write_atomically(tmp_path / "a", ours)
    assert (tmp_path / "a").read_bytes() == b"ours" and os.listdir(tmp_path) == ["a"]


def test_two_writers_of_one_file_take_turns(tmp_path):
    children = []
    for i in range(2):
        if not (child := os.fork()):
            status = 1
            with suppress(BaseException):
                for _ in range(100):
                    files.write_atomically(
                        tmp_path / "a", lambda file, i=i: [file.write(b"%d" % i) for _ in range(999)]
                    )
                status = 0
            os._exit(status)
        children.append(child)
    found, statuses = set(), []
    while len(statuses) < 2:
        with suppress(FileNotFoundError):
            found.add((tmp_path / "a").read_bytes())
        ended, status = os.waitpid(children[len(statuses)], os.WNOHANG)
        statuses += [status] if ended else []
    assert statuses == [0, 0]
    assert found <= {b"0" * 999, b"1" * 999} and os.listdir(tmp_path) == ["a"]


def test_all_shapes_of_a_stages_arrays_are_compared(base, tmp_path):
    record, groups = files.load(base / faults.HALF / "fitnet.h5")
    groups["optimizer"] = {name: np.zeros(a.size, a.dtype) for name, a in groups["best"].items()}
    files.save(tmp_path / "a.h5", record, **groups)
    with pytest.raises(UserError, match="optimizer/"):
        stages.load(tmp_path / "a.h5")
    record, groups = files.load(base / faults.HALF / "fitnet.h5")
    for mean, said in ((groups["optimizer"], ""), (groups["best"] | {"z": np.zeros(3)}, "mean has an array z")):
        files.save(tmp_path / "a.h5", record, **groups, mean=mean)
        with pytest.raises(UserError, match=said) if said else nullcontext():
            stages.load(tmp_path / "a.h5")
