"""Settings: each has a rule that refuses what it must and a sentence for the help; ramps and schedules over epochs."""

from dataclasses import fields, replace
from math import inf, nan

import pytest

from minifit import UserError, settings
from minifit.experiments import EXPERIMENTS, MNIST, STREAMS, STUDIES, Config, check
from minifit.optimizers import SGD, Ramp, RMSProp, Schedule

EVERY = {name: (f, value) for name, f, value in settings.walk(MNIST)}


def having(config, name, value):
    """The settings with one of them changed."""
    part, dot, rest = name.partition(".")
    return replace(config, **{part: replace(getattr(config, part), **{rest: value}) if dot else value})


def refusal(config, experiment="mnist"):
    with pytest.raises(UserError) as refused:
        check(EXPERIMENTS[experiment], config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_has_a_help_sentence_that_its_value_can_follow(name):
    said = EVERY[name][0].metadata["help"]
    assert len(said) > 10 and said[0].islower() and said[-1] not in ".;:"


def test_every_setting_belongs_to_a_group():
    groups = [f.metadata.get("group") for f in fields(Config)]
    assert groups[0] and list(filter(None, groups)) == ["data", "networks", "hint", "distillation", "training"]


@pytest.mark.parametrize("bad", [-1, nan, inf, 1e39], ids=str)
@pytest.mark.parametrize("name", [name for name in EVERY if not isinstance(EVERY[name][1], str | bool)])
def test_every_number_is_refused_where_it_cannot_be_meant(name, bad):
    value = EVERY[name][1]
    values = [(bad,)] if isinstance(value, tuple) else [bad]
    if isinstance(value, Ramp):
        values = [Ramp(bad), replace(value, first=bad), replace(value, last=bad)]
    for value in values:
        line = refusal(having(MNIST, name, value))
        assert line.startswith(f"{settings.flag(name)} ") and "wanted" in line


@pytest.mark.parametrize("name", [name for name, (f, value) in EVERY.items() if isinstance(value, str)])
def test_every_word_is_one_of_those_that_there_are(name):
    line = refusal(having(MNIST, name, "other"))
    assert line.startswith(f"{settings.flag(name)} other: wanted ")
    for choice in EVERY[name][0].metadata["rule"].choices:
        assert choice in line
        check(EXPERIMENTS["mnist"], having(MNIST, name, choice))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tau": 0.0}, "--tau 0.0: wanted a number above 0"),
        ({"dropout_keep": 1.5}, "--dropout-keep 1.5: wanted a probability above 0"),
        ({"train": 0}, "--train 0: wanted at least 1"),
        ({"lam": Ramp(4.0, 1.0, 12, 20)}, "--lam 4.0 1.0 12 20: wanted"),
        ({"lam": Ramp(4.0, 1.0, 12, 0)}, "--lam 4.0 1.0 12 0: wanted"),
        ({"guided_layer": (7,)}, "--guided-layer 7: wanted one of the layers 1..6 below the output"),
        ({"guided_layer": (4, 0)}, "--guided-layer 0: wanted one of the layers 1..6 below the output"),
        ({"hint_layer": (4,)}, "--hint-layer 4: wanted one of the layers 1..3 below the output"),
        ({"guided_layer": (2, 4)}, "--guided-layer 2 4 and --hint-layer 2: wanted pairs"),
        ({"guided_layer": (), "hint_layer": ()}, "wanted pairs"),
        ({"crops": 28}, "--crops 28: wanted 0 to 27 pixels"),
        ({"retrain": True, "validation": 0}, "--retrain: wanted validation images"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused_with_what_was_wanted(changes, said):
    assert said in refusal(replace(MNIST, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"test": None, "validation": 0, "student_tau": None, "regressor_pieces": None, "microbatch": None},
        {"guided_layer": (2, 6), "hint_layer": (1, 3), "crops": 27, "teacher_all": 0, "targets_memory": 0},
        {"lam": Ramp(0.0, 0.0, 5, 5), "dropout_keep": 1.0, "guided_lr_scale": 0.0},
        {
            "teacher": Schedule(
                "sgd", lr=1e-9, epochs=1, patience=1, batch=1, momentum=Ramp(0.99), lr_scale=Ramp(1, 0, 9)
            )
        },
    ],
    ids=str,
)
def test_settings_at_their_limits_are_taken(changes):
    check(EXPERIMENTS["mnist"], replace(MNIST, **changes))


@pytest.mark.parametrize(("name", "preset"), [(n, p) for n, e in EXPERIMENTS.items() for p in e.presets])
def test_every_preset_can_be_meant(name, preset):
    check(EXPERIMENTS[name], EXPERIMENTS[name].presets[preset])


@pytest.mark.parametrize("name", [name for name, e in EXPERIMENTS.items() if "short" in e.presets])
def test_studies_change_one_setting_at_a_time_of_the_short_preset(name):
    short = EXPERIMENTS[name].presets["short"]
    for study in STUDIES:
        arms = list(study.arms.values())
        for arm in arms:
            check(EXPERIMENTS[name], replace(short, **arm))
            assert all(getattr(short, setting) != value for setting, value in arm.items())
        for arm in arms[1:]:
            assert len({*arm.items()} ^ {*arms[0].items()}) <= 2
            assert len({setting for setting, _ in {*arm.items()} ^ {*arms[0].items()}}) == 1


def test_the_streams_of_published_seeds_keep_their_numbers():
    weights = ("teacher weights", "student weights", "regressor weights")
    assert (*weights, "teacher", "backprop", "kd", "hint", "fitnet", "teacher_all") == STREAMS


@pytest.mark.parametrize(
    ("ramp", "values"),
    [
        (Ramp(4.0), [4, 4, 4, 4, 4, 4]),
        (Ramp(4.0, 1.0, 4), [4, 3, 2, 1, 1, 1]),
        (Ramp(4.0, 1.0, 5, 2), [4, 4, 3, 2, 1, 1]),
        (Ramp(1.0, 2.0, 3, 3), [1, 1, 2, 2, 2, 2]),
    ],
    ids=str,
)
def test_a_ramp_is_linear_between_its_epochs_and_constant_outside(ramp, values):
    assert [ramp(epoch) for epoch in range(1, 7)] == pytest.approx(values, rel=1e-15)


def test_a_constant_ramp_says_so_with_one_number():
    assert Ramp(0.5) == Ramp(0.5, 0.5) and Ramp(0.5).last == 0.5
    assert settings.words(Ramp(0.5)) == ["0.5"]
    assert settings.words(Ramp(0.5, 0.5, 3)) == ["0.5", "0.5", "3"]
    assert settings.words(Ramp(4.0, 1.0, 9, 2)) == ["4.0", "1.0", "9", "2"]


def test_a_schedule_sets_the_rate_by_epoch_and_by_updates():
    schedule = Schedule("sgd", lr=0.2, epochs=9, patience=9, lr_scale=Ramp(1.0, 0.1, 5), lr_decay=2.0)
    optimizer = schedule.make()
    assert isinstance(optimizer, SGD) and optimizer.lr == 0.2
    for epoch, updates, lr in ((1, 0, 0.2), (1, 3, 0.025), (3, 1, 0.055), (5, 0, 0.02), (9, 1, 0.01)):
        schedule.adjust(optimizer, epoch, updates)
        assert optimizer.lr == pytest.approx(lr, rel=1e-14)


def test_a_schedule_sets_the_momentum_of_sgd_alone():
    schedule = Schedule("sgd", lr=1.0, epochs=9, patience=9, momentum=Ramp(0.5, 0.7, 5))
    optimizer = schedule.make()
    assert optimizer.momentum == 0.5
    for epoch, momentum in ((1, 0.5), (3, 0.6), (5, 0.7), (9, 0.7)):
        schedule.adjust(optimizer, epoch, 0)
        assert optimizer.momentum == pytest.approx(momentum, rel=1e-14)
    other = replace(schedule, optimizer="rmsprop", lr=0.25).make()
    assert isinstance(other, RMSProp) and other.lr == 0.25
    replace(schedule, optimizer="rmsprop").adjust(other, 5, 0)
    assert not hasattr(other, "momentum")
