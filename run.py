"""The command line: parse, choose, call.

python run.py digits                   all stages on digits that minifit draws itself, in minutes
python run.py mnist --stage hint       stage 1 of Algorithm 1 on MNIST, and the teacher it needs
python run.py mnist --preset paper     the paper's settings: up to 500 epochs a stage
python run.py cifar10-fitnet1          CIFAR-10 and the student FitNet 1; the other experiments are listed below
python run.py compare mnist --seeds 5  all stages for each seed, and every method's errors over the seeds
python run.py study mnist --seeds 2    one setting changed at a time, on a shorter schedule
python run.py results mnist            the pages and pictures of both again, from the records; nothing is trained
python run.py networks                 the paper's networks for MNIST and CIFAR, counted
python run.py audit                    every gradient against the derivative of its forward pass
python run.py mnist --help             every setting
"""

import os
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:

    def stop(*_):
        """What Ctrl-C does while the rest is imported, which takes a second; main, below, has more to say."""
        os.write(1, b"\nstopped; nothing had begun\n")
        os._exit(130)

    signal.signal(signal.SIGINT, stop)

import shlex
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np

from minifit import UserError, experiments, networks
from minifit.lab import compare as comparison, pages, plan as outline, publish as results, report, studies, summaries
from minifit.backend import use
from minifit.lab.cli import AuditCommand, ResultsCommand, Several, command_line, options, parse, run_of, settings_of
from minifit.lab.handover import take_teacher
from minifit.lab.jobs import Job, run_jobs
from minifit.lab.training import TrainingError
from minifit.lab.parallel import WorkerLost
from reference import paper


def check_gradients(arguments):
    from minifit import audit

    command = command_line(AuditCommand, "run.py audit", arguments, AuditCommand())
    results = audit.run(command.draws, command.seed, command.row, use(command.backend))
    say(audit.table(results))
    return 1 if any(result.failure for result in results) else 0


def train(name, arguments):
    command = parse(name, arguments)
    config, dataset = settings_of(name, command)
    where, run = command.teacher_from, run_of(name, command, config, command.seed, dataset, command.runs)
    perform(run, command.stage, where)
    if config.retrain:
        say("\nAgain, on all images, for the epochs that were best:\n")
        run = run.on_all()
        perform(run, command.stage, where and Path(where) / "all")
    return 0


def perform(run, goal, teacher_from=None):
    """Trains the stages that the goal takes, and prints what lies ahead, what happens and what came out."""
    with run:
        if teacher_from:
            take_teacher(run, teacher_from)
        stages, folder = run.plan(goal), run.folder
        sizes = "{train:,} images to train on, {validation:,} to validate, {test:,} to test".format(**run.sizes)
        say(f"{run.data.name}: {sizes}; seed {run.seed}; {run.workers} workers; {folder}/")
        if {"kd", "hint"} & set(stages):
            say(outline.teacher_line(run))
        for line in outline.regressor_lines(run, stages):
            say(line)
        if run.whitening:
            say(f"Whitened by what the training images tell, kept in {run.whitening}.")
        say("")
        say(report.plan_table(outline.outline(run, stages)) + "\n")
        for stage in stages:
            record, fresh = run.make(stage, lambda epoch: say(report.epoch_line(epoch)))
            kept = f" (from {record['from']})" if "from" in record else "" if fresh else " (kept)"
            say(report.stage_line(stage, record, run.sizes["test"], folder) + kept)
            if fresh or stage == stages[-1]:
                run.plot()
        if goal == "all":
            say("\n" + report.results_table(run.summary(), published_of(run.name, run.data)))
        say(f"\n{folder}/: summary.json, metrics.jsonl, curves.png, filters.png")


def compare(name, arguments):
    """All stages for each seed, as many seeds at once as asked for; then tables and pictures of all of them."""
    command = parse(name, arguments, Several, "run.py compare")
    config, dataset = settings_of(name, command)
    results.claim(Path(command.results) / name)
    runs, seeds = seeds_of(name, command, config, dataset)
    jobs = []
    for run in seeds:
        if run.directory.begun() and unfinished(run, "all"):
            say(f"seed {run.seed}: goes on in {run.folder}")
        if unfinished(run, "all"):
            jobs.append(Job(f"seed {run.seed}", [child(name, command, config, run.seed, runs, command.teacher_from)]))
    failed = carry_out(jobs, len(seeds), command.at_once)

    said = f"python run.py compare {shlex.join([name, *arguments])}"
    part = write_part(name, command, seeds, said)
    results.write_pages(Path(command.results) / name, published_of(name, dataset))
    say(pages.as_printed(summaries.of_part(command.preset, part)))
    say(f"\n{Path(command.results) / name}/: README.md, report.html, {command.preset}/results.json and pictures")
    return failed


def seeds_of(name, command, config, dataset):
    """The folder of a comparison's runs, and the runs."""
    runs = Path(command.runs) / ("" if command.preset == "default" else command.preset)
    return runs, [run_of(name, command, config, seed, dataset, runs) for seed in range(command.seeds)]


def write_part(name, command, seeds, said):
    """Writes what the runs of a comparison came to.   said: the command that made them"""
    start, published = experiments.EXPERIMENTS[name].presets[command.preset], published_of(name, seeds[0].data)
    return results.write_comparison(seeds, Path(command.results) / name, said, start, published)


def write_again(name, arguments):
    """Everything in a results folder, and nothing is trained: comparisons from the records of the runs that their
    commands name, studies from their own studies.json, where all of their figures are.

    UserError, with the folder as it was, where those runs no longer have what it tells of them.
    """
    own = command_line(ResultsCommand, f"run.py results {name}", arguments, ResultsCommand())
    folder, found, published = Path(own.results) / name, [], {}
    for preset, part in results.parts_of(folder).items():
        words = shlex.split(part["command"])[4:]
        command = replace(parse(name, words, Several), results=own.results, data_dir=own.data_dir)
        config, dataset = settings_of(name, command)
        _, seeds = seeds_of(name, command, config, dataset)
        for run, seed in zip(seeds, part["seeds"], strict=True):
            run.directory.begun()
            lost = [stage for stage in comparison.of_seed(run, "all")["missing"] if stage not in seed["missing"]]
            if lost:
                raise UserError(f"{run.folder}: no {', '.join(lost)}, of which {folder / preset} tells")
        found.append((command, seeds, part["command"]))
        published = published_of(name, dataset)
    if not found and not (folder / "studies.json").exists():
        raise UserError(f"{folder}: no comparison in it, and no studies; python run.py compare {name} makes one")
    for command, seeds, said in found:
        write_part(name, command, seeds, said)
    results.write_pages(folder, published)
    say(f"{folder}/: {', '.join(['README.md', 'report.html', *(command.preset + '/' for command, _, _ in found)])}")
    return 0


def study(name, arguments):
    """Each variant of the studies for each seed, from the teacher that the base trains; then a table and a plot."""
    if name not in studies.BASES:
        raise UserError(f"there is no study of {name}: choose {' or '.join(studies.BASES)}")
    base = studies.BASES[name]
    command = parse(
        name, [*options(base, experiments.EXPERIMENTS[name].presets["default"]), *arguments], Several, "run.py study"
    )
    if command.preset != "default":
        raise UserError(f"--preset {command.preset}: studies have a short schedule of their own")
    config, dataset = settings_of(name, command)
    results.claim(Path(command.results) / name)
    variants, runs = studies.variants(studies.STUDIES), {}
    for folder, (changes, goals, more) in variants.items():
        own = replace(config, **changes)
        experiments.check(experiments.EXPERIMENTS[name], own)
        where = Path(command.runs) / "study" / folder
        seeds = range(command.seeds + more)
        runs[folder] = [run_of(name, command, own, seed, dataset, where) for seed in seeds], goals
    jobs, most = [], max(len(own) for own, _ in runs.values())
    for seed in range(most):
        commands = []
        for folder, (own, goals) in runs.items():
            if seed >= len(own):
                continue
            run, teacher = own[seed], command.teacher_from if folder == "base" else runs["base"][0][seed].folder
            run.directory.begun()
            for goal in goals:
                if unfinished(run, goal):
                    words = child(name, command, run.config, seed, Path(command.runs) / "study" / folder, teacher)
                    commands.append([*words, "--stage", goal])
        if commands:
            jobs.append(Job(f"seed {seed}", commands))
    failed = carry_out(jobs, most, command.at_once)

    folder, changes = Path(command.results) / name, {folder: changes for folder, (changes, *_) in variants.items()}
    said = f"python run.py study {shlex.join([name, *arguments])}"
    found = comparison.gather_studies(studies.STUDIES, runs, changes, said, config, command.seeds)
    results.write_studies(found, folder)
    results.write_pages(folder, published_of(name, dataset))
    say(pages.as_printed(summaries.of_studies(found)))
    say(f"\n{folder}/: README.md, report.html, studies.json, studies.png")
    return failed


def unfinished(run, *goals):
    """Whether something is left to train of a run, or of its second half on all images."""
    return bool(run.missing(*goals) or (run.config.retrain and run.on_all().missing(*goals)))


def child(name, command, config, seed, runs, teacher_from):
    """The command that trains one seed, as a list of words."""
    settings = {"runs": runs, "seed": seed, "workers": max(1, command.workers // command.at_once)}
    settings |= {"backend": command.backend, "preset": command.preset}
    settings |= {"data-dir": command.data_dir} if command.data_dir else {}
    settings |= {"teacher-from": teacher_from} if teacher_from else {}
    words = [word for setting, value in settings.items() for word in (f"--{setting}", str(value))]
    changed = options(config, experiments.EXPERIMENTS[name].presets[command.preset])
    return [str(Path(__file__).resolve()), name, *words, *changed]


def carry_out(jobs, seeds, at_once):
    """Runs the jobs of the seeds that are not finished; an exit status."""
    kept = seeds - len(jobs)
    if kept:
        say(f"{kept} of {seeds} seeds kept: nothing is left to train in them")
    statuses = run_jobs(jobs, at_once, say)
    for job, status in statuses.items():
        if status:
            print(f"run.py: {job} ended with exit status {status}", file=sys.stderr)
    return max(map(abs, statuses.values()), default=0) and 1


def published_of(name, dataset):
    """The paper's test errors of an experiment, if they are of this data set."""
    of, published = paper.RESULTS.get(name, ("", {}))
    return published if dataset.name.startswith(of) else {}


def show_networks():
    def counted(network):
        """All weights and multiplications of a network, built."""
        counts = networks.count(networks.build(network, rng=None), np.zeros((0, *network.input), np.float32))
        return [sum(column) for column in zip(*counts, strict=True)]

    likely = paper.COUNTS["FitNet 3, block 1 of 64s"]
    fully_connected = (
        "Its fully connected maxout layer has 5 pieces, as the text says: so it is built and trained. The published "
        "counts are those of 2 pieces in every maxout layer."
    )
    as_printed = [
        "As printed, with a first block of 32-48-64-64, it gives neither published figure. 64-64-64-64 would: "
        f"{likely.weights:,} weights and {report.count(likely.multiplications)} multiplications."
    ]
    budget = ["Table 6 gives no counts: this is the budget of multiplications that the series keeps to."]
    own = {
        networks.FITNET_3: as_printed,
        networks.FITNET_3_100: as_printed,
        networks.FITNET_4_100: ["The published figure is that of 10 classes; 100 classes have 45,000 weights more."],
        **dict.fromkeys((*networks.DEPTH_30M, *networks.DEPTH_107M), budget),
    }
    rows = []
    for network in networks.NETWORKS:
        as_counted, as_built = counted(networks.as_counted(network)), counted(network)
        published = paper.COUNTS[network.name]
        said = published.published_weights, published.published_multiplications
        weights, multiplications = zip(said, as_counted, as_built, strict=True)
        notes = [fully_connected] * (as_counted != as_built) + own.get(network, [])
        row = {"network": network.name, "layers": len(network.blocks), "notes": notes}
        rows.append(row | {"weights": weights, "multiplications": multiplications})
    say(report.networks_table(rows))
    return 0


def say(text):
    print(text, flush=True)


def main(arguments):
    several = {"compare": compare, "study": study, "results": write_again}
    commands = [*experiments.EXPERIMENTS, *several, "networks", "audit"]
    if not arguments or arguments[0] in ("-h", "--help"):
        say(__doc__.strip())
        listed = textwrap.fill(", ".join(experiments.EXPERIMENTS), 100, break_on_hyphens=False)
        say(f"\nThe experiments:\n{listed}")
        return 0
    name, *rest = arguments
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if name == "networks":
            if rest in (["-h"], ["--help"]):
                say("python run.py networks: the networks for MNIST and CIFAR, their weights and multiplications")
                return 0
            if rest:
                raise UserError(f"networks takes no settings, but was given {shlex.join(rest)}")
            return show_networks()
        if name == "audit":
            return check_gradients(rest)
        if name in several:
            if not rest or rest[0] not in experiments.EXPERIMENTS:
                choice = ", ".join(studies.BASES if name == "study" else experiments.EXPERIMENTS)
                raise UserError(f"{name} takes an experiment first: choose {choice}")
            return several[name](rest[0], rest[1:])
        if name not in experiments.EXPERIMENTS:
            raise UserError(f"{name!r} is not an experiment: choose {', '.join(commands)}")
        return train(name, rest)
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except (TrainingError, WorkerLost) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "the last finished epoch is kept. To go on" if name not in ("networks", "audit") else "to begin again"
        say(f"\nstopped; {kept}: python run.py {shlex.join(arguments)}")
        return 130
    except BrokenPipeError:  # as of `run.py networks | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
