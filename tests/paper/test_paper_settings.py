"""Every setting of every `paper` preset is the one in reference/paper.py, or a departure that is listed here."""

import inspect
from dataclasses import fields, is_dataclass

import pytest

from minifit import networks
from minifit.experiments import EXPERIMENTS
from minifit.optimizers import RMSProp
from reference import paper

# In every paper preset: what no source settles, and what stays neutral.
OPEN = {
    "preprocessing": "one of two words; the numbers behind it are in test_preprocessing.py",
    "microbatch": "of the machine, not of the method",
    "targets_memory": "of the machine, not of the method",
}
NEUTRAL = {"teacher_width_scale": 1.0, "guided_lr_scale": 1.0}  # times what the paper has
NEUTRAL |= {"hint_reduction": "sum", "student_tau": None}  # eq. 3 and eq. 1 as they are printed
STUDENTS = ("stage1", "student")
NEUTRAL |= {f"{part}.lr_decay": 1.0 for part in STUDENTS}
NEUTRAL |= {f"{part}.average": None for part in ("teacher", *STUDENTS)}  # the paper averages no weights


def ramp(name, first, last=None, end=1, start=1):
    """The four settings that a ramp is; constant by default."""
    return {f"{name}.first": first, f"{name}.last": first if last is None else last, f"{name}.end": end} | {
        f"{name}.start": start
    }


for part in STUDENTS:
    NEUTRAL |= ramp(f"{part}.lr_scale", 1.0) | ramp(f"{part}.momentum", 0.0)

# {setting: (what the source has, what the preset has, why)}
EVERYWHERE = {"teacher.batch": (None, 128, "no source at hand has the teacher's: the students'")}
MNIST = {
    "stage1.optimizer": ("sgd", "rmsprop", "the released code's: SGD does not move from this start"),
    "student.optimizer": ("sgd", "rmsprop", "the released code's: SGD does not move from this start"),
    "teacher.epochs": (None, 500, "a limit; pylearn2 has patience alone"),
    "teacher_all": (None, 500, "a limit; pylearn2 goes on until losses meet"),
}
CIFAR = {
    "crops": (8, 0, "the released code's alone; the paper has flips"),
    "student_conv_lr_scale": (0.05, 1.0, "the released code's alone"),
    "teacher.patience": (None, 100, "the students'"),
}
CIFAR10 = {"teacher.epochs": (474, 500, "the most, as for students, and a choice among them")}
CIFAR100 = {
    "validation": (10_000, 0, "all 50,000 images from the start"),
    "train": (40_000, 50_000, "all 50,000 images from the start"),
    "retrain": (True, False, "all 50,000 images from the start"),
}
DEPTH = {"retrain": (True, False, "not for Figure 2")}
TEST_IMAGES = {"mnist": 10_000, "cifar10": None, "cifar100": None}  # None: all that there are


def flat(settings, prefix=""):
    for f in fields(settings):
        value = getattr(settings, f.name)
        yield from flat(value, f"{prefix}{f.name}.") if is_dataclass(value) else [(prefix + f.name, value)]


def of_source(name, experiment):
    """{setting: value} as reference/paper.py has it."""
    mnist = experiment.data == "mnist"
    student = paper.TRAINING["MNIST student" if mnist else "CIFAR students"]
    teacher = paper.TRAINING["MNIST teacher" if mnist else "CIFAR-10 teacher"]
    student, teacher, regressor, both = (
        {key: setting.value for key, setting in group.items()}
        for group in (student, teacher, paper.TRAINING["regressor"], paper.TRAINING["teachers"])
    )
    _, lam, lam_final, start, end = student["lambda"]
    _, momentum, momentum_final, _, momentum_end = teacher["momentum"]
    _, low, width = student["initial weights"]
    assert -low == width and regressor["initial weights"][0] == "uniform"
    lr = ("constant", teacher["learning rate"], None, 0, 1) if mnist else teacher["learning rate"]
    train, validation = student["training and validation images"]
    if "m-" in name:
        guided, hint = paper.DEPTH_GUIDED[int(name.rpartition("-")[2])], 2
    else:
        pair = paper.HINTS["MNIST FitNet" if mnist else f"FitNet {name[-1]}"]
        guided, hint = pair.guided, pair.hint
    wanted = {
        "train": train,
        "validation": validation,
        "test": TEST_IMAGES[experiment.data],
        "retrain": student.get("then on all 50,000 images for the epochs found", False),
        "flips": bool(student.get("flips")),
        "crops": student.get("crops, from this much zero padding", 0),
        "guided_layer": (guided,),
        "hint_layer": (hint,),
        "teacher_all": None if mnist else 0,
        "dropout_keep_input": both["dropout keeps, of the input"][0],
        "dropout_keep": both["dropout keeps, before the other layers"][0],
        "regressor": "conv",
        "regressor_pieces": {"the teacher's": None}[regressor["pieces"]],
        "regressor_init": "uniform",
        "regressor_init_range": regressor["initial weights"][2],
        "regressor_max_norm": regressor["max kernel norm"],
        "tau": paper.TEMPERATURE.value,
        **ramp("lam", lam, lam_final, end, max(1, start)),  # epochs are counted from 1
        "init": "uniform",
        "init_range": width,
        "teacher.optimizer": "sgd",
        "teacher.lr": lr[1],
        **ramp("teacher.lr_scale", 1.0, 1.0 if mnist else lr[2] / lr[1], lr[4]),
        "teacher.lr_decay": teacher.get("learning rate, divided at each update by", 1.0),
        **ramp("teacher.momentum", momentum, momentum_final, momentum_end),
        "teacher.epochs": teacher.get("epochs"),
        "teacher.patience": teacher.get("patience, epochs"),
        "teacher.batch": None,
        "teacher_conv_lr_scale": teacher.get("convolutions' share of the learning rate", 1.0),
    }
    wanted["student_conv_lr_scale"] = student.get("convolutions' share of the learning rate", 1.0)
    for part in STUDENTS:
        wanted |= {
            f"{part}.optimizer": student["optimiser"].lower(),
            f"{part}.lr": student["learning rate"],
            f"{part}.epochs": student["epochs at most, each stage"],
            f"{part}.patience": student["patience, epochs"],
            f"{part}.batch": student["batch"],
        }
    return NEUTRAL | wanted


def departures(name, experiment):
    own = {"mnist": MNIST, "cifar10": CIFAR | CIFAR10, "cifar100": CIFAR | CIFAR100}[experiment.data]
    return EVERYWHERE | own | (DEPTH if "m-" in name else {})


@pytest.mark.parametrize("name", [name for name, e in EXPERIMENTS.items() if e.data in TEST_IMAGES])
def test_every_number_of_the_paper_preset_is_the_papers_or_a_listed_departure(name):
    experiment = EXPERIMENTS[name]
    preset, source = dict(flat(experiment.presets["paper"])), of_source(name, experiment)
    assert preset.keys() == source.keys() | OPEN.keys()
    differ = {
        setting: (theirs, preset[setting])
        for setting, theirs in source.items()
        if preset[setting] != (pytest.approx(theirs, rel=1e-12) if isinstance(theirs, float) else theirs)
    }
    assert differ == {setting: (theirs, ours) for setting, (theirs, ours, _) in departures(name, experiment).items()}


def test_the_digits_paper_preset_is_mnists_on_fewer_images():
    mnist, digits = (dict(flat(EXPERIMENTS[name].presets["paper"])) for name in ("mnist", "digits"))
    assert {setting for setting in mnist if mnist[setting] != digits[setting]} == {"train", "validation", "test"}


def changed(preset, other):
    """{setting: its value} where a preset differs from another."""
    mine, theirs = dict(flat(preset)), dict(flat(other))
    return {name: value for name, value in mine.items() if value != theirs[name]}


def source(group):
    return {name: setting.value for name, setting in paper.TRAINING[group].items()}


def test_the_svhn_paper_preset_is_cifar10s_with_svhns_images_preprocessing_and_teacher():
    svhn, teacher = source("SVHN"), source("SVHN teacher")
    train, extra, _ = svhn["training, extra and test images"]
    validation = 10 * sum(svhn["validation images a class, from training and extra"])
    (_, lr, last_lr, _, end), (_, momentum, last, _, momentum_end) = teacher["learning rate"], teacher["momentum"]
    found = changed(EXPERIMENTS["svhn"].presets["paper"], EXPERIMENTS["cifar10-fitnet3"].presets["paper"])
    assert found.pop("hint_layer") == (3,)  # ours, with layer 8 of FitNet 3: the paper has no pair for SVHN
    assert found.pop("teacher.lr_scale.last") == pytest.approx(last_lr / lr, rel=1e-12)
    assert svhn["preprocessing"].startswith("global, then local") and found.pop("preprocessing") == "local"
    assert not svhn["validation images are trained on in the end"] and found.pop("retrain") is False
    assert found == {
        "train": train + extra - validation,
        "validation": validation,
        "flips": False,
        "teacher.lr": lr,
        "teacher.lr_scale.end": end,
        "teacher.momentum.last": last,
    }
    preset = dict(flat(EXPERIMENTS["svhn"].presets["paper"]))
    assert preset["guided_layer"] == (8,)
    assert preset["teacher.momentum.first"] == momentum and preset["teacher.momentum.end"] == momentum_end
    assert preset["teacher_conv_lr_scale"] == teacher["convolutions' share of the learning rate"]
    assert preset["teacher.patience"] == teacher["patience, epochs"]


@pytest.mark.parametrize("name", ["faces", "faces-fitnet2"])
def test_the_faces_paper_preset_has_the_papers_start_momentum_batch_and_pair(name):
    aflw, preset = source("AFLW"), dict(flat(EXPERIMENTS[name].presets["paper"]))
    _, low, width = aflw["initial weights"]
    assert preset["init"] == "uniform" and preset["init_range"] == width == -low
    _, first, last, _, end = aflw["momentum"]
    for part in ("teacher", *STUDENTS):
        found = {setting: value for setting, value in preset.items() if setting.startswith(f"{part}.momentum")}
        assert found == ramp(f"{part}.momentum", first, last, end)
        assert preset[f"{part}.optimizer"] == "sgd" and preset[f"{part}.batch"] == aflw["batch"]
    assert (preset["guided_layer"], preset["hint_layer"], preset["tau"]) == ((5,), (3,), paper.TEMPERATURE.value)
    assert preset["dropout_keep"] == preset["dropout_keep_input"] == 1.0
    assert preset["lam.first"] == 4.0 and preset["lam.last"] == 1.0 and preset["lam.end"] == 500
    images = sum(aflw["faces and other images"]) * aflw["share trained on"]
    assert preset["train"] / (preset["train"] + preset["validation"]) == pytest.approx(0.9, abs=1e-4)
    assert preset["train"] + preset["validation"] <= images and preset["test"] is None


def test_rmsprop_has_the_sources_constants():
    defaults = {name: p.default for name, p in inspect.signature(RMSProp).parameters.items()}
    rule = paper.TRAINING["RMSProp"]
    assert (defaults["decay"], defaults["floor"]) == (rule["decay"].value, rule["floor under the root"].value)


@pytest.mark.parametrize(
    ("network", "norms"),
    [
        (networks.MNIST_TEACHER, "MNIST teacher"),
        (networks.MNIST_FITNET, "MNIST student"),
        (networks.CIFAR10_TEACHER, "CIFAR-10 teacher"),
        (networks.CIFAR100_TEACHER, "CIFAR-10 teacher"),
        (networks.SVHN_TEACHER, "SVHN teacher"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_largest_norms_are_the_sources(network, norms):
    assert tuple(block.max_norm for block in network.blocks) == paper.TRAINING[norms]["max kernel norms"].value
