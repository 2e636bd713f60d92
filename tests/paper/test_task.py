"""What a task gives a method: networks at their start, regressors, heads, random streams, a given teacher."""

from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest

from minifit import fitnets
from minifit.composites import Sequential
from minifit.experiments import MNIST_PAPER, STREAMS
from minifit.layers import Linear, Maxout, ReLU
from minifit.networks import Conv, Network, Output, build, initialise
from minifit.task import Task

STUDENT = Network("student", (4, 3, 1), (Conv(2, 2), Conv(1, 2, pad=1, pool=(2, 2)), Output(2)))
TEACHER = Network("teacher", (4, 3, 1), (Conv(2, 3, pool=(2, 2), pieces=3), Output(2)))
SETTINGS = replace(MNIST_PAPER, guided_layer=(2,), hint_layer=(1,), init_range=0.3, regressor_init_range=0.2)


def task(settings=SETTINGS, **changes):
    return Task({"teacher": TEACHER, "student": STUDENT}, settings, 7, **changes)


def draws(*numbers):
    return np.random.default_rng(list(numbers)).random(3).tolist()


def drawn(layers, rng, init_range):
    initialise(layers, rng, init_range)
    return layers


def same(one, other):
    assert one.params.keys() == other.params.keys()
    for name, p in one.params.items():
        np.testing.assert_array_equal(p, other.params[name])
        assert p.dtype == other.params[name].dtype


def test_a_published_stream_has_its_number_and_any_other_one_that_of_its_name():
    for number, stream in enumerate(STREAMS):
        assert task().rng(stream).random(3).tolist() == draws(7, number)
    assert task().rng("another").random(3).tolist() == draws(7, crc32(b"another"))
    assert task().rng("hint", 2).random(3).tolist() == draws(7, STREAMS.index("hint"), 2)
    assert task().rng("hint", 1).random(3).tolist() == task().rng("hint").random(3).tolist()


def test_a_network_starts_from_the_stream_of_its_name_in_the_type_of_the_task():
    rng = np.random.default_rng([7, STREAMS.index("student weights")])
    same(task().network("student"), drawn(build(STUDENT), rng, 0.3))
    own = replace(STUDENT, blocks=(Output(2),))
    rng = np.random.default_rng([7, crc32(b"mine weights")])
    same(task().network("mine", own), drawn(build(own), rng, 0.3))
    assert task(dtype=np.float64).network("student").params["0.0.w"].dtype == np.float64
    assert task().network("student").params["0.0.w"].dtype == np.float32


def test_a_scaled_start_has_outputs_of_variance_1_and_is_drawn_from_no_range():
    images = np.random.default_rng(0).normal(size=(50, 4, 3, 1)).astype(np.float32)
    student = task(replace(SETTINGS, init="scaled"), images=images).network("student")
    assert student[:1](images).std() != pytest.approx(task(images=images).network("student")[:1](images).std(), rel=0.1)
    assert student(images).var() == pytest.approx(1, rel=1e-3)
    normal = np.random.default_rng([7, STREAMS.index("student weights")])
    w = student.params["0.0.w"]
    ratios = w / normal.normal(0, np.prod(w.shape[:-1]) ** -0.5, w.shape)  # one factor per layer
    np.testing.assert_allclose(ratios, ratios.flat[0], rtol=1e-5)


@pytest.mark.parametrize("changes", [{"draw": False}, {"trained": frozenset({"student"})}], ids=str)
def test_weights_that_nobody_needs_are_not_drawn(changes):
    assert not any(p.any() for p in task(**changes).network("student").params.values())
    assert task(trained=frozenset({"teacher"})).network("student").params["0.0.w"].any()


def test_a_head_classifies_what_is_below_it_from_a_stream_of_its_own():
    below = task().network("student")[:1]
    head = task().head(below, "a head", 2)
    n = below(np.zeros((1, 4, 3, 1), np.float32)).size
    rng = np.random.default_rng([7, crc32(b"a head"), 2])
    same(head[-1:], drawn(Sequential([Linear(np.zeros((n, 2), np.float32), np.zeros(2, np.float32))]), rng, 0.3))
    scaled = task(replace(SETTINGS, init="scaled")).head(below, "a head", 2)
    rng = np.random.default_rng([7, crc32(b"a head"), 2])
    same(scaled[-1:], drawn(Sequential([Linear(np.zeros((n, 2), np.float32), np.zeros(2, np.float32))]), rng, None))
    same(task().head(below, "a head"), task().head(below, "a head", 1))
    assert not any(p.any() for p in task(draw=False).head(below, "a head").params.values())


def test_a_regressor_has_the_hints_pieces_unless_told():
    of = task()
    guided, hint = of.network("student")[:2], of.network("teacher", TEACHER)[:1]
    for settings, kind, pieces in (
        (SETTINGS, Maxout, 3),
        (replace(SETTINGS, regressor_pieces=1), Maxout, 1),
        (replace(SETTINGS, regressor="fc", regressor_pieces=2), Maxout, 2),
    ):
        layers = task(settings).regressor(guided, hint)
        [nonlinearity] = [layer for layer in layers if isinstance(layer, Maxout | ReLU)]
        assert isinstance(nonlinearity, kind) and nonlinearity.pieces == pieces
        assert layers(guided(np.zeros((1, 4, 3, 1), np.float32))).shape == hint(np.zeros((1, 4, 3, 1))).shape
    first = np.random.default_rng([7, STREAMS.index("regressor weights")])
    w = next(p for name, p in task().regressor(guided, hint).params.items() if name.endswith("w"))
    np.testing.assert_array_equal(w, first.uniform(-0.2, 0.2, w.shape).astype(np.float32))
    normal = task(replace(SETTINGS, regressor_init="normal")).regressor(guided, hint)
    rng = np.random.default_rng([7, STREAMS.index("regressor weights")])
    same(normal, drawn(task(draw=False).regressor(guided, hint), rng, None))
    assert not any(p.any() for p in task(draw=False).regressor(guided, hint).params.values())
    assert {p.dtype for p in task(dtype=np.float64).regressor(guided, hint).params.values()} == {np.dtype(np.float64)}


def test_a_teacher_that_was_given_is_the_teacher_and_is_not_trained():
    given, stages = Sequential([ReLU()]), []
    of = Task({"teacher": given, "student": STUDENT}, SETTINGS, 7)
    assert of.teacher is given and task().teacher is None
    fitnets.kd(of, lambda stage: stages.append(stage) or {"best_epoch": 1})
    assert [stage.name for stage in stages] == ["kd"] and stages[0].target is given


def test_teachers_of_an_ensemble_have_names_and_starts_of_their_own():
    of, stages = task(replace(SETTINGS, teacher_all=0)), []
    first, second = (
        fitnets.trained_teacher(of, lambda s: stages.append(s) or {"best_epoch": 1}, *name)
        for name in ((), ("teacher_2",))
    )
    assert [(stage.name, stage.of) for stage in stages] == [("teacher", "teacher"), ("teacher_2", "teacher_2")]
    rng = np.random.default_rng([7, crc32(b"teacher_2 weights")])
    w = second.params["0.1.w"] if "0.1.w" in second.params else second.params["0.0.w"]
    np.testing.assert_array_equal(w, rng.uniform(-0.3, 0.3, w.shape).astype(np.float32))
    assert of.teacher is first and fitnets.trained_teacher(of, None, "teacher_2") is second


def test_distillation_has_the_settings_temperatures_and_weight():
    settings = replace(SETTINGS, tau=2.5, student_tau=1.5)
    assert fitnets.eq_2(task(settings)) == fitnets.Distillation(2.5, settings.lam, 1.5)
    assert fitnets.eq_3(task(replace(settings, hint_reduction="mean"))) == fitnets.Hint("mean")
