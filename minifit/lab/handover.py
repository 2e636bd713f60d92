"""A trained teacher for the students of another run: teachers are dear, and one may serve every student and seed."""

import json
from pathlib import Path

from minifit import UserError
from minifit.lab import files as checkpoints
from minifit.lab.files import digest, read_json, write_json, write_text
from minifit.lab.rundir import differences, flat, whole_lines

# What makes a teacher what it is, beside its schedule. Any random start will do, whatever its seed and its width: it is
# the trained teacher that is asked.
SETTINGS = (
    "data",
    "images",
    "train",
    "validation",
    "test",
    "preprocessing",
    "flips",
    "crops",
    "networks.teacher",
    "epochs.teacher",
    "teacher_all",
    "keep_input",
    "keep",
)


def take_teacher(run, source):
    """Copies the teacher of the run directory `source` into the run's, with its figures and where it is from.

    UserError where it is not what the run itself would train, but for the random start, or where the run has one of its
    own, or students of another.
    """
    source, last = Path(source), "teacher_all" if run.config.teacher_all else "teacher"
    trained = {name: _trained(run, source, name) for name in dict.fromkeys(("teacher", last))}
    if not run.directory.checkpoint(last).exists():
        _refuse_students_of_another(run, source, trained[last][1]["best"])
    for name, (record, groups) in trained.items():
        path = run.directory.checkpoint(name)
        if path.exists():
            mine = run.directory.best(name)
            if digest(mine.values()) != digest(groups["best"].values()):
                raise UserError(f"--teacher-from {source}: {run.folder} has a {name} of its own")
            continue
        figures = read_json(source / "summary.json").get("stages", {}).get(name)
        if figures is None:
            raise UserError(f"--teacher-from {source}: its summary.json has no {name}")
        summary = run.summary()
        summary["stages"][name] = figures | {"from": str(source)}
        write_json(run.folder / "summary.json", summary)
        run.directory.forget_after(name)
        lines = [line for line in whole_lines(source / "metrics.jsonl") if json.loads(line)["stage"] == name]
        write_text(run.folder / "metrics.jsonl", "".join(run.directory.lines() + lines))
        record["identity"] |= {"settings": run.settings_of(name), "from": str(source)}
        checkpoints.save(path, record, best=groups["best"])  # last: before it, nothing else counts


def _refuse_students_of_another(run, source, weights):
    """UserError where the run has students, but no teacher any more, and theirs did not have these weights."""
    teacher = run.teacher(trained=False)
    checkpoints.restore(teacher.params, weights, source)
    for name in run.taught:
        path = run.directory.checkpoint(name)
        if path.exists() and run.of_another(name, teacher):
            raise UserError(f"--teacher-from {source}: {path} was made from another teacher")


def _trained(run, source, name):
    path = source / f"{name}.h5"
    if not path.exists():
        raise UserError(f"--teacher-from {source}: there is no {path.name} in it")
    record, groups = checkpoints.load(path)
    if not record.get("finished"):
        raise UserError(f"--teacher-from {source}: its {name} is not finished")
    old, new = (
        {key: value for key, value in flat(settings).items() if key in SETTINGS or key.startswith("teacher.")}
        | {"teacher_width": settings.get("teacher_width")}
        for settings in (record["identity"]["settings"], run.settings_of(name))
    )
    differing = differences(old, new)
    if differing:
        raise UserError(f"--teacher-from {source}: a teacher of other settings: {differing}")
    return record, groups
