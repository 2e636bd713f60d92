"""Ranks that mpiexec starts: the bits of one process, one line for every fault, and a comparison's jobs."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import pytest
from test_workers import left_after

ROOT = Path(__file__).resolve().parents[2]
BESIDE = Path(sys.executable).with_name("mpiexec")  # as pip puts it there
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
SMALL = str(ROOT / "tests" / "lab" / "ranks.py")

pytest.importorskip("mpi4py", reason="mpi4py is not installed")
if MPIEXEC is None:
    pytest.skip("there is no mpiexec", allow_module_level=True)

proc = Path(f"/proc/self/task/{os.getpid()}/children")
linux = pytest.mark.skipif(not proc.exists(), reason="there is no /proc to find the launcher or a child in")

# Ranks that do what the command line does with them, without its imports.
LIGHT = """
import os, sys
from minifit import UserError
from minifit.lab import parallel, ranks
from minifit.lab.parallel import first, shared

ranks.join("light")
ours = parallel.ranks
try:
    BODY
except Exception as error:
    ours.end(f"run.py: {error}", 2, sys.stderr)
"""


def command(n, *words, launcher=(), **more):
    """mpiexec's words for n ranks, each with more variables."""
    setting = [word for name, value in more.items() for word in ("-env", name, value)]
    return [*launcher, "-n", str(n), *setting, sys.executable, *words]


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"} | more


def started(words, launcher=(MPIEXEC,), seconds=100, **more):
    """(exit status, stdout, the lines of stderr that minifit wrote), and in less time than a hang takes."""
    done = subprocess.run(
        [*launcher, *words], cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=seconds
    )
    return done.returncode, done.stdout, [line for line in done.stderr.splitlines() if line.startswith("run.py")]


def light(n, body, before=""):
    code = before + LIGHT.replace("BODY", body.strip().replace("\n", "\n    "))
    return started(command(n, "-c", code))


def datasets(folder):
    """{(file, name): bytes} of all that the files of stages hold, and what the epochs came to."""
    found = {}
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            names = []
            file.visititems(lambda name, item, names=names: names.append(name) if isinstance(item, h5py.Dataset) else 0)
            found |= {(path.name, name): file[name][()].tobytes() for name in names}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return found, [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process."""
    runs = tmp_path_factory.mktemp("one")
    done = subprocess.run(
        [sys.executable, SMALL, "digits", "--runs", runs, "--workers", "1"], cwd=ROOT, env=environment()
    )
    assert done.returncode == 0
    return datasets(runs / "digits" / "seed0")


@pytest.mark.parametrize("n", [2, 3, 4])
def test_ranks_leave_the_bits_of_one_process(n, one, tmp_path):
    status, said, complaints = started(command(n, SMALL, "digits", "--runs", tmp_path))
    assert (status, complaints) == (0, []) and said.count("epoch 1:") == 5  # rank 0 alone speaks
    assert datasets(tmp_path / "digits" / "seed0") == one


def test_ranks_share_what_each_has_asked_the_teacher_of_whitened_images(tmp_path):
    """Of 100 and 70 images each of two ranks asks a part; without augmentation the answers are kept."""
    words = [SMALL, "digits", "--no-flips", "--crops", "0", "--preprocessing", "whitened", "--stage", "fitnet"]
    words += ["--train", "100", "--validation", "70"]
    words += [f"--{part}.epochs=1" for part in ("teacher", "stage1", "student")]
    alone = subprocess.run([sys.executable, *words, "--runs", tmp_path / "1", "--workers", "1"], env=environment())
    status, said, complaints = started(command(2, *words, "--runs", tmp_path / "2"))
    assert (alone.returncode, status, complaints) == (0, 0, []) and "Whitened images are kept in a temporary" in said
    assert "The teacher's outputs are computed once and kept" in said
    assert datasets(tmp_path / "2" / "digits" / "seed0") == datasets(tmp_path / "1" / "digits" / "seed0")


def test_a_killed_rank_is_named_and_other_ranks_with_workers_go_on_from_the_last_epoch(one, tmp_path):
    words = SMALL, "digits", "--runs", tmp_path
    began = time.monotonic()
    status, said, complaints = started(command(3, *words), LOSE="2 hint 2")
    assert status != 0 and "hint epoch 1:" in said and time.monotonic() - began < 60
    (line,) = complaints
    assert (
        line.startswith("run.py: rank 2 of 3, on ") and f"mpiexec -n 3 python run.py digits --runs {tmp_path}" in line
    )
    folder = tmp_path / "digits" / "seed0"
    assert datasets(folder)[1][-1]["stage"] == "hint" and not list(folder.glob(".*.tmp"))
    assert started(command(2, *words, "--workers", "2"))[0] == 0
    assert datasets(folder) == one


def test_a_team_of_ranks_computes_what_a_team_does():
    status, said, complaints = light(
        3,
        """
import numpy as np
rows, parts = shared((5, 7)), shared((4, 2))
def draw(job):
    rows[job] = np.random.default_rng(job).standard_normal(7) * 1e3
    return job, ours.rank
def fill(job):
    parts[job] = job
with parallel.team(2, {"draw": draw, "fill": fill, "square": lambda job: job * job}) as team:
    assert team.run("square", range(8)) == [job * job for job in range(8)] and team.run("square", []) == []
    assert team.run("draw", range(5)) == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)]
    total = team.add(rows)
    wanted = np.float32(np.random.default_rng(0).standard_normal(7) * 1e3)
    for job in range(1, 5):
        wanted += np.float32(np.random.default_rng(job).standard_normal(7) * 1e3)
    assert total.tobytes() == wanted.tobytes()
    team.run("fill", range(4))
    assert (parts[1:] == 0).any()  # each rank has only its own
    team.spread([parts], [slice(job, job + 1) for job in range(4)])
    assert parts.tolist() == [[job, job] for job in range(4)]
assert first(lambda: ours.rank)() == 0 and ours.each(lambda: ours.rank) == ours.rank
sys.__stdout__.write(f"{ours.rank}\\n")
""",
    )
    assert (status, sorted(said.split()), complaints) == (0, ["0", "1", "2"], [])


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("ours.each(lambda: ours.rank == 1 and open('/nowhere'))", "FileNotFoundError"),
        (
            """
def read():
    if ours.rank == 1:
        raise UserError("/there: no such file")
ours.each(read)""",
            "run.py: rank 1 of 2, on HOST: /there: no such file",
        ),
        (
            "ours.agree(lambda: {'NumPy': '2.1' if ours.rank else '2.4', 'seed': 1})",
            "run.py: rank 1 of 2, on HOST, has NumPy 2.1, and rank 0 has 2.4; all ranks need the same",
        ),
        (
            """
ours.begun = True
def save():
    raise UserError("f.h5: cannot be written (No space left on device)")
first(save)()""",
            "run.py: f.h5: cannot be written (No space left on device). The last finished epoch is kept. To go on, "
            "start the same command again: mpiexec -n 2 python run.py light",
        ),
        (
            """
with parallel.team(2, {"leave": lambda job: job == 3 and os._exit(7)}) as team:
    team.run("leave", range(4))""",
            "run.py: rank 1 of 2, on HOST: a worker process ended with status 7",
        ),
        (
            """
if ours.rank == 1:
    raise UserError("alone")
ours.meet()""",
            "run.py: rank 1 of 2, on HOST: alone",
        ),
        ("os._exit(3) if ours.rank else ours.meet()", "run.py: rank 1 of 2, on HOST, is lost"),
    ],
    ids=["a bug", "no data", "versions", "a full disk", "a worker", "an error of one", "an exit"],
)
def test_a_fault_of_one_rank_ends_all_with_one_line(body, wanted):
    began = time.monotonic()
    status, _, complaints = light(2, body)
    assert status != 0 and time.monotonic() - began < 60
    if wanted.startswith("run.py"):
        (line,) = complaints
        host = line.partition(", on ")[2].partition(":")[0].partition(",")[0]
        assert line.startswith(wanted.replace("HOST", host))


# Rank 0 on another machine than the launcher, which loses what it says.
FAR = """
import os
from minifit.lab import watchdog, ranks
if "0" in (os.environ.get("PMI_RANK"), os.environ.get("OMPI_COMM_WORLD_RANK")):
    watchdog.launcher = ranks.launcher = lambda: None
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
"""


@linux
def test_a_rank_beside_the_launcher_writes_the_line():
    status, _, complaints = light(2, "os._exit(3) if ours.rank else ours.meet()", FAR)
    (line,) = complaints
    assert status != 0 and line.startswith("run.py: rank 1 of 2, on ") and "is lost" in line


# A launcher that ends as soon as its rank does, and that passes on what the rank's processes say, or loses it.
PASSES = """#!/bin/sh
(exec "$@" 2>TO)
echo it has ended >&2
"""
ONE_RANK = """
import os, signal
from minifit.lab import watchdog
held = watchdog.Lifeline(*watchdog.start("{who} is lost"), "rank 0")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("to", ["&2", "/dev/null"], ids=["passed on", "lost"])
@pytest.mark.parametrize("into", ["pipe", "file"])
def test_the_line_reaches_the_terminal_whether_or_not_the_launcher_passes_it_on(to, into, tmp_path):
    launcher = tmp_path / "mpiexec"
    launcher.write_text(PASSES.replace("TO", to))
    launcher.chmod(0o755)
    said = tmp_path / "said"
    with open(said, "w") as file:
        into_it = {"stderr": file} if into == "file" else {"stderr": subprocess.PIPE}
        words = [launcher, sys.executable, "-c", ONE_RANK]
        done = subprocess.run(words, cwd=ROOT, env=environment(), timeout=60, **into_it)
        deadline = time.monotonic() + 20
        while into == "file" and "lost" not in said.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = (done.stderr.decode() if into == "pipe" else said.read_text()).splitlines()
    assert sorted(line for line in lines if "Killed" not in line) == ["it has ended", "rank 0 is lost"]


# Two ranks are killed, one after the other, while the process that watches them has no time to look.
IN_TURN = """
import os, signal, sys, time
from minifit.lab import watchdog
place = watchdog.start("{who} is lost")
(watcher,) = map(int, open(f"/proc/self/task/{os.getpid()}/children").read().split())
ranks = []
for name in ("rank 0", "rank 1"):
    done, told = os.pipe()
    if not (pid := os.fork()):
        held = watchdog.Lifeline(*place, name)
        os.write(told, b"x")
        signal.pause()
    os.read(done, 1)
    ranks.append(pid)
os.kill(watcher, signal.SIGSTOP)
for rank in map(int, sys.argv[1:]):
    os.kill(ranks[rank], signal.SIGKILL)
    os.waitpid(ranks[rank], 0)
os.kill(watcher, signal.SIGCONT)
os.waitpid(watcher, 0)
"""


@linux
@pytest.mark.parametrize("order", ["01", "10"])
def test_of_two_lost_ranks_the_first_is_named(order):
    words = [sys.executable, "-c", IN_TURN, *order]
    done = subprocess.run(words, cwd=ROOT, env=environment(), timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"rank {order[0]} is lost\n")


def test_the_line_holds_no_pipe_open_that_nobody_reads(tmp_path):
    launcher = tmp_path / "mpiexec"
    launcher.write_text(PASSES.replace("TO", "&2"))
    launcher.chmod(0o755)
    asked = "fcntl.fcntl(watchdog._with_stderr(watchdog.launcher())[1], fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY"
    words = [launcher, sys.executable, "-c", f"import fcntl, os; from minifit.lab import watchdog; print({asked})"]
    done = subprocess.run(words, cwd=ROOT, env=environment(), timeout=60, capture_output=True)
    assert done.stdout == b"True\n"


def interruptible(words, stderr=subprocess.DEVNULL):
    """mpiexec with these words, as a process that Ctrl-C reaches."""
    pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
    return subprocess.Popen(
        [MPIEXEC, *words],
        cwd=ROOT,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
        start_new_session=True,
        **pipes,
    )


def test_ctrl_c_ends_all_ranks_and_one_says_how_to_go_on():
    body = """
try:
    ours.meet()  # all ranks are ready to be stopped
    print("begun", flush=True)
    while True:
        ours.meet()
except KeyboardInterrupt:
    ours.end(f"stopped, {ours.launcher}", 130, sys.stdout)"""
    process = interruptible(command(3, "-c", LIGHT.replace("BODY", body.strip().replace("\n", "\n    "))))
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith("[mpiexec")]
    assert (process.returncode, lines) == (130, ["stopped, mpiexec -n 3 "])


def test_ranks_with_other_settings_and_commands_of_one_process_are_refused(tmp_path):
    words = SMALL, "digits", "--runs", tmp_path
    status, _, complaints = started([*command(1, *words), ":", *command(1, *words, "--seed", "1")])
    assert (
        status == 2
        and len(complaints) == 1
        and complaints[0].endswith("has seed 1, and rank 0 has 0; all ranks need the same")
    )
    assert not (tmp_path / "digits").exists()


def test_jobs_are_dealt_to_the_ranks_and_one_that_fails_stops_no_other():
    status, said, complaints = light(
        3,
        """
from minifit.lab.jobs import Job, run_jobs
def print_and_leave(what, status=0):
    return ["-c", f"import os, sys; print({what!r}, 'PMI_RANK' in os.environ); sys.exit({status})"]
jobs = [Job(f"seed {i}", [print_and_leave("began", i % 2), print_and_leave("ended")]) for i in range(4)]
jobs.append(Job("seed 0 of an arm", [print_and_leave("followed")], after="seed 0"))
def command():
    statuses = run_jobs(jobs, 1, print, ours.places())
    print(statuses)
    return 1
assert ours.lead(command) == 1
""",
    )
    lines, statuses = said.splitlines(), {**{f"seed {i}": i % 2 for i in range(4)}, "seed 0 of an arm": 0}
    wanted = {f"seed {i} | {what} False" for i in range(4) for what in ("began", "ended")}
    assert (status, complaints) == (0, [])
    assert {*lines} == wanted | {"seed 0 of an arm | followed False", str(statuses)}
    assert lines.index("seed 0 | ended False") < lines.index("seed 0 of an arm | followed False")


# One job at each rank.
LONG = """
import time
from minifit.lab.jobs import Job, run_jobs
def command():
    return run_jobs([Job(f"job {i}", [["-c", JOB]]) for i in range(ours.size)], 1, print, ours.places())
try:
    ours.lead(command)
except KeyboardInterrupt:
    ours.end("stopped", 130, sys.stdout)"""


def test_a_rank_that_is_lost_with_its_job_is_named():
    here = "import os; os.environ['HERE'] = os.environ.get('PMI_RANK') or os.environ['OMPI_COMM_WORLD_RANK']\n"
    job = "import os, signal, time; os.environ['HERE'] == '1' and os.kill(os.getppid(), signal.SIGKILL); time.sleep(99)"
    began = time.monotonic()
    status, _, complaints = light(3, LONG.replace("JOB", repr(job)), here)
    (line,) = complaints
    assert status != 0 and line.startswith("run.py: rank 1 of 3, on ") and time.monotonic() - began < 60


def test_ctrl_c_ends_the_jobs_of_all_ranks():
    job = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    body = LONG.replace("JOB", repr(job))
    words = command(3, "-c", LIGHT.replace("BODY", body.strip().replace("\n", "\n    ")))
    with interruptible(words) as process:
        pids = [int(process.stdout.readline().split()[-1]) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith("[mpiexec")]
    assert (process.returncode, lines) == (130, ["stopped"])
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# Ranks that say who they are. One is stopped; each end has a bound of its own, which these tests make short.
KNOWN = """
import signal, time
ranks.PATIENCE = ranks.LATE = 1
pids = ours.gather(os.getpid())
def stop(rank):
    os.kill(pids[rank], signal.SIGSTOP)
if ours.rank == 0:
    print(*pids, flush=True)
"""
BOUND = 20  # seconds, in which two bounds of one second have passed on any machine


def ended(n, body, before="", interrupt=0, stopped=1):
    """(exit status, the lines of stderr that minifit wrote) of ranks, one of which is stopped; none is left.

    interrupt: after so many printed lines, each with a process id, a rank is stopped, and mpiexec gets Ctrl-C
    """
    words = command(n, "-c", before + LIGHT.replace("BODY", (KNOWN + body).strip().replace("\n", "\n    ")))
    process, pids = interruptible(words, stderr=subprocess.PIPE), []
    try:
        pids += map(int, process.stdout.readline().split())
        pids += [int(process.stdout.readline().split()[-1]) for _ in range(interrupt)]
        if interrupt:
            os.kill(pids[stopped], signal.SIGSTOP)
            process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=BOUND)
        assert len(pids) == n + interrupt and left_after(pids, 5) == []
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
    lines = [re.sub(r", on [^,:]*", ", on HOST", line) for line in complaints.splitlines()]
    return process.returncode, [line.removeprefix("run.py: ") for line in lines if line.startswith("run.py: ")]


COMMAND = """
from minifit.lab.jobs import Job, run_jobs
def command():
    print(run_jobs([Job(f"job {i}", [["-c", ""]]) for i in range(ours.size)], 1, print, ours.places()), flush=True)
    END
ours.lead(command)
"""


@pytest.mark.parametrize(
    ("n", "body", "wanted"),
    [
        (2, COMMAND.replace("END", "stop(1)"), "1: rank 1 of 2, on HOST, does not end, as when it is stopped"),
        (3, COMMAND.replace("END", "stop(2)"), "1: rank 2 of 3, on HOST, does not end, as when it is stopped"),
        (
            2,
            COMMAND.replace("END", "stop(1); raise UserError('out: no folder')"),
            "2: rank 0 of 2, on HOST: out: no folder",
        ),
        (3, "if ours.rank == 1: stop(1)", "1: rank 1 of 3, on HOST, does not end, as when it is stopped"),
        (2, "if ours.rank == 0: stop(0)", "1: rank 0 of 2, on HOST, does not end, as when it is stopped"),
        (
            2,
            """
leave = ours.line.leave
ours.line.leave = lambda: (leave(), ours.rank and stop(1))
raise UserError('out: no folder')""",
            "2: out: no folder",
        ),
    ],
    ids=["after its jobs", "one of three", "an error", "at its end", "rank 0", "a bad end"],
)
def test_a_stopped_rank_does_not_hang_the_end(n, body, wanted):
    status, (line,) = ended(n, body)
    assert f"{status}: {line}" == wanted


def test_a_rank_that_is_stopped_in_the_end_of_mpi_does_not_hang_it():
    status, lines = ended(2, "", "import atexit\natexit.register(lambda: ours.rank and stop(1))")
    assert status and lines == []  # there is no Python any more that could say one


JOB = "import os, time; from minifit.lab import parallel; parallel.end_with(os.getppid()); print(os.getpid()); "
JOBS = f"""
from minifit.lab.jobs import Job, run_jobs
def command():
    jobs = [Job(f"job {{i}}", [["-uc", {JOB + "time.sleep(100)"!r}]]) for i in range(ours.size)]
    return run_jobs(jobs, 1, lambda line: print(line, flush=True), ours.places())
"""
SAY = """
def say_and_wait():
    os.write(1, f"{os.getpid()}\\n".encode())
    signal.pause()
meet = ours.meet
"""
BETWEEN = """
if ours.rank == 0:
    ours.meet = lambda: (meet(), say_and_wait())
"""
STOPPED = """
try:
    WAIT
except KeyboardInterrupt:
    ours.end("stopped", 130, sys.stdout)"""


@pytest.mark.parametrize(
    ("before", "wait", "lines", "stopped"),
    [
        (JOBS, "ours.lead(command)", 2, 1),
        (SAY, "(meet(), say_and_wait()) if ours.rank else (meet(), ours.gather(0))", 1, 1),
        (SAY + BETWEEN, "ours.first(lambda: 0)", 1, 0),  # after it has come, and before it says its result
    ],
    ids=["with its job", "before it comes", "before it answers"],
)
def test_ctrl_c_ends_all_ranks_where_one_is_stopped(before, wait, lines, stopped):
    status, said = ended(2, before + STOPPED.replace("WAIT", wait), interrupt=lines, stopped=stopped)
    assert (status, said) == (130, [f"rank {1 - stopped} of 2, on HOST: stopped"])


def test_a_comparison_over_ranks_names_the_seed_that_fails_and_publishes_the_others(tmp_path):
    busy = tmp_path / "runs" / "digits" / "seed1"
    busy.mkdir(parents=True)
    words = "compare", "digits", "--seeds", "2", "--stage", "teacher", "--runs", tmp_path / "runs"
    with open(busy / ".lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        status, said, complaints = started(command(2, SMALL, *words, "--results", tmp_path / "results"))
    assert (status, complaints) == (1, ["run.py: seed 1 ended with exit status 2"])
    assert f"seed 1 | run.py: {busy}: another process is at work in it" in said
    found = json.loads((tmp_path / "results" / "digits" / "default" / "results.json").read_text())
    assert [(run["seed"], bool(run["missing"])) for run in found["runs"]] == [(0, False), (1, True)]


def timeless(value):
    """A value of JSON without the seconds that anything took, and what is computed of them."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if name not in ("seconds", "sha256")}
    return [*map(timeless, value)] if isinstance(value, list) else value


def test_a_comparison_over_ranks_leaves_the_results_of_one_process(tmp_path):
    words, found = ("compare", "digits", "--seeds", "2", "--stage", "kd"), []
    for n in (1, 2):
        mine = [*words, "--runs", tmp_path / f"runs{n}", "--results", tmp_path / f"results{n}"]
        assert started(command(n, SMALL, *mine))[0] == 0
        text = (tmp_path / f"results{n}" / "digits" / "default" / "results.json").read_text()
        found.append(timeless(json.loads(re.sub(r"(runs|results)\d", r"\1", text))))
    assert found[0] == found[1] and [run["missing"] for run in found[0]["runs"]] == [[], []]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (["compare", "digits", "--seeds", "3"], "has the words compare digits --seeds 3"),
        (["digits"], "has the command digits, and rank 0 has compare"),
    ],
    ids=["words", "command"],
)
def test_ranks_of_a_comparison_have_the_same_command(other, named, tmp_path):
    words = "compare", "digits", "--seeds", "2", "--runs", tmp_path / "runs", "--results", tmp_path / "results"
    began = time.monotonic()
    status, _, (line,) = started([*command(1, SMALL, *words), ":", *command(1, SMALL, *other)])
    assert status == 2 and named in line and "all ranks need the same" in line and time.monotonic() - began < 60
    assert not any(tmp_path.iterdir())


def test_ranks_of_a_comparison_have_the_same_code(tmp_path):
    body = """
from minifit.lab import cli
cli.versions = lambda: {"minifit": "9" if ours.rank else "1"}
parallel.several = lambda: False
sys.exit(cli.main(["compare", "digits", "--runs", PLACE]))"""
    status, _, (line,) = light(2, body.replace("PLACE", repr(str(tmp_path / "runs"))))
    assert status == 2 and "has minifit 9, and rank 0 has 1; all ranks need the same" in line
    assert not any(tmp_path.iterdir())


def test_help_ends_all_ranks():
    status, said, complaints = started(command(2, SMALL, "compare", "--help"))
    assert (status, complaints) == (0, []) and said.count("compare RUN RUN") == 1


def test_without_mpiexec_nothing_of_it_is_imported():
    code = (
        "import sys; from minifit.lab import cli; cli.main(['networks', '--help']); "
        "print({'mpi4py', 'minifit.lab.ranks', 'minifit.lab.mpi', 'minifit.lab.watchdog'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()"


# Two network namespaces as two hosts: what mpiexec takes for ssh starts a command in the one of that address. mpiexec
# itself runs at the first, and is no process of the second.
SSH = """#!/bin/sh
[ "$1" = -x ] && shift
host=$1; shift
case $host in 10.213.77.1) name=A own=;; 10.213.77.2) name=B own="--pid --fork --mount-proc";; *) exit 255;; esac
exec ip netns exec $name unshare --uts $own sh -c "hostname $name; $*"
"""


HOSTS = "10.213.77.1", "10.213.77.2"


@pytest.fixture
def hosts(tmp_path):
    """The words that start mpiexec on some of two hosts, as a function of their addresses, and the hosts' names."""
    names = [f"minifit-{os.getpid()}-{letter}" for letter in "ab"]

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True)

    if shutil.which("ip") is None or shutil.which("unshare") is None or ip("netns", "add", names[0]).returncode:
        pytest.skip("network namespaces are not allowed here")
    try:
        ip("netns", "add", names[1])
        ends = "va", "vb"
        ip("link", "add", "va", "netns", names[0], "type", "veth", "peer", "name", "vb", "netns", names[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip("-n", name, "addr", "add", f"10.213.77.{number}/24", "dev", end)
            ip("-n", name, "link", "set", "lo", "up")
            if ip("-n", name, "link", "set", end, "up").returncode:
                pytest.skip("network namespaces cannot be joined here")
        deadline = time.monotonic() + 10  # MPI takes no device that is not up yet, and Linux may take a second
        for name, end in zip(names, ends, strict=True):
            while "state UP" not in ip("-n", name, "link", "show", end).stdout:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        ssh = tmp_path / "ssh"
        ssh.write_text(SSH.replace("name=A", f"name={names[0]}").replace("name=B", f"name={names[1]}"))
        ssh.chmod(0o755)
        at_first = "ip", "netns", "exec", names[0], MPIEXEC, "-localhost", HOSTS[0]
        by_ssh = "-launcher", "ssh", "-launcher-exec", str(ssh)
        tcp = "-genv", "UCX_TLS", "self,tcp"  # they share a machine, whose memory would be the shorter way
        yield lambda *found: (*at_first, *by_ssh, "-hosts", ",".join(found), *tcp), names
    finally:
        for name in names:
            ip("netns", "del", name)


def test_two_hosts_leave_the_bits_of_one_process(one, hosts, tmp_path):
    launcher, names = hosts
    words = SMALL, "digits", "--stage", "teacher", "--runs", tmp_path
    status, _, complaints = started(command(2, *words), launcher(*HOSTS))
    (arrays, epochs), (wanted, lines) = datasets(tmp_path / "digits" / "seed0"), one
    assert (status, complaints) == (0, [])
    assert arrays == {name: held for name, held in wanted.items() if name[0] == "teacher.h5"} and epochs == lines[:2]
    count = ["ip", "netns", "exec", names[1], "cat", "/sys/class/net/vb/statistics/rx_bytes"]
    assert int(subprocess.run(count, capture_output=True, text=True).stdout) > 5e4  # it came by the network


@pytest.mark.parametrize("at", [HOSTS, HOSTS[1:]], ids=["on both", "on the other"])
def test_a_rank_that_is_lost_on_another_host_than_mpiexec_is_named(at, hosts, tmp_path):
    launcher, names = hosts
    words = command(2, SMALL, "digits", "--stage", "teacher", "--runs", tmp_path)
    began = time.monotonic()
    status, said, (line,) = started(words, launcher(*at), LOSE="1 teacher 2")
    assert status != 0 and "teacher epoch 1:" in said and time.monotonic() - began < 60
    assert line.startswith(f"run.py: rank 1 of 2, on {names[1]}, is lost")
