"""Algorithm 1 twice: by minifit, and by the reference's forward, differences and optimiser, with no backward code."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from properties import as_reference, close

from minifit import fitnets, optimizers
from minifit.audit import built, settled
from minifit.fitnets import gradient, measure
from minifit.layers import Conv2d, Dropout, Sequential
from minifit.networks import Conv, FullyConnected, Output
from minifit.regressors import pieces_of, regressor
from reference import losses as reference_losses
from reference import optimizers as reference_optimizers
from reference import train

TAU, LAM = 3.0, fitnets.linear(4.0, 1.0, 1, 3)
SGD = partial(optimizers.SGD, 0.01, 0.9), partial(reference_optimizers.sgd, lr=0.01, momentum=0.9)
# At pylearn2's floor of 1e-5 RMSProp would make steps of the differences' own noise where a gradient is 0.
RMSPROP = partial(optimizers.RMSProp, 0.01, floor=1e-2), partial(reference_optimizers.rmsprop, lr=0.01, floor=1e-2)
both_rules = pytest.mark.parametrize(("make", "update"), [SGD, RMSPROP], ids=["sgd", "rmsprop"])


def actors(pieces=2, kind="conv"):
    """Student, teacher, regressor from the student's layer 2 to the teacher's layer 1, two images and their labels."""
    rng = np.random.default_rng(3)
    thin = Conv(2, 2, pieces=pieces), Conv(1, 2, pad=1, pool=(2, 2), pieces=pieces)
    student = built((*thin, FullyConnected(2, pieces), Output(2)), (4, 3, 1), rng)
    teacher = built((Conv(2, 3, pool=(2, 2), pieces=pieces), Output(2)), (4, 3, 1), rng)
    x, labels = rng.normal(size=(2, 4, 3, 1)), np.array([1, 0])
    for p in teacher.params.values():
        p.flags.writeable = False
    guided, hint = student[:2](x).shape[1:], teacher[:1](x).shape[1:]
    assert (guided, hint) == ((2, 2, 1), (1, 1, 2))
    middle = settled(regressor(kind, guided, hint, pieces_of(teacher[0]), rng, width=1.0, dtype=np.float64), rng)
    return student, teacher, middle, x, labels


def trained(stage, x, labels, optimizer, epochs=(1, 2, 3)):
    """One step an epoch, all in place; returns the losses before each."""
    target, before = None if stage.target is None else stage.target(x), []
    for epoch in epochs:
        loss, grads = gradient(stage, x, target, labels, epoch)
        optimizer.step(stage.network.params, grads)
        before.append(loss)
    return before


def agree(network, reference):
    arrays = train.weights(reference)
    assert len(network.params) == len(arrays)
    for p, expected in zip(network.params.values(), arrays, strict=True):
        close(p, expected, rtol=1e-9)


def snapshot(layers):
    return {name: p.copy() for name, p in layers.params.items()}


def moved(before, layers):
    return {name for name, p in layers.params.items() if not np.array_equal(p, before[name])}


@both_rules
def test_back_propagation_agrees_with_the_two_stage_oracle(make, update):
    student, _, _, x, labels = actors()
    reference, state = as_reference(student), train.initial_state(as_reference(student))
    expected = []
    for _ in range(3):
        reference, state, loss = train.backprop_step(reference, x, labels, state, update)
        expected.append(loss)
    close(trained(fitnets.backprop(student), x, labels, make()), expected, rtol=1e-9)
    agree(student, reference)


@both_rules
def test_distillation_agrees_with_the_two_stage_oracle_while_lambda_falls(make, update):
    student, teacher, _, x, labels = actors()
    reference, state = as_reference(student), train.initial_state(as_reference(student))
    expected = []
    for epoch in (1, 2, 3):
        reference, state, loss = train.distillation_step(
            reference, as_reference(teacher), x, labels, TAU, LAM(epoch), state, update
        )
        expected.append(loss)
    close(trained(fitnets.kd(student, teacher, TAU, LAM), x, labels, make()), expected, rtol=1e-9)
    agree(student, reference)


@pytest.mark.parametrize(
    ("rule", "pieces", "kind"), [(SGD, 2, "conv"), (RMSPROP, 2, "conv"), (SGD, None, "conv"), (RMSPROP, 2, "fc")]
)
def test_hints_and_then_the_fitnet_agree_with_the_two_stage_oracle(rule, pieces, kind):
    make, update = rule
    student, teacher, middle, x, labels = actors(pieces, kind)
    teachers_bytes = [p.tobytes() for p in teacher.params.values()]
    theirs, their_middle, their_teacher = map(as_reference, (student, middle, teacher))
    before, middle_before = snapshot(student), snapshot(middle)

    state, expected = train.initial_state(theirs[:2], their_middle), []
    for _ in range(3):
        theirs, their_middle, state, loss = train.hint_step(theirs, their_middle, their_teacher, x, 2, 1, state, update)
        expected.append(loss)
    close(trained(fitnets.hint(student, teacher, middle, 2, 1), x, labels, make()), expected, rtol=1e-9)
    agree(student, theirs)
    agree(middle, their_middle)
    assert moved(before, student) == {"0.0.w", "0.0.b", "1.0.w", "1.0.b"}  # the guided layers, and
    assert moved(middle_before, middle) == set(middle.params)  # the regressor

    before, state, expected = snapshot(student), train.initial_state(theirs), []
    for epoch in (1, 2, 3):
        theirs, state, loss = train.distillation_step(theirs, their_teacher, x, labels, TAU, LAM(epoch), state, update)
        expected.append(loss)
    close(trained(fitnets.fitnet(student, teacher, TAU, LAM), x, labels, make()), expected, rtol=1e-9)
    agree(student, theirs)
    assert moved(before, student) == set(student.params)
    assert [p.tobytes() for p in teacher.params.values()] == teachers_bytes


def test_each_stage_trains_what_its_line_of_algorithm_1_says():
    student, teacher, middle, _, _ = actors()
    hint = fitnets.hint(student, teacher, middle, 2, 1)
    assert [hint.network[i] for i in range(4)] == [student[0], student[1], *middle]  # the same layers, not copies
    assert list(hint.target) == [teacher[0]]
    stages = {
        "teacher": fitnets.teacher(teacher),
        "backprop": fitnets.backprop(student),
        "kd": fitnets.kd(student, teacher, TAU, LAM),
        "hint": hint,
        "fitnet": fitnets.fitnet(student, teacher, TAU, LAM),
    }
    assert {name: stage.name for name, stage in stages.items()} == {name: name for name in fitnets.NAMES}
    assert [name for name, stage in stages.items() if not stage.classifies] == ["hint"]
    assert [name for name, stage in stages.items() if stage.target is teacher] == ["kd", "fitnet"]
    assert [name for name, stage in stages.items() if stage.network is student] == ["backprop", "kd", "fitnet"]
    assert stages["teacher"].network is teacher


def test_norms_and_rates_go_with_every_stage():
    student, teacher, middle, _, _ = actors()
    norms, rates = {"0.0.w": 0.9}, {"0.0.w": 0.05}
    for stage in (
        fitnets.teacher(teacher, norms, rates),
        fitnets.teacher_all(teacher, norms, rates),
        fitnets.backprop(student, norms, rates),
        fitnets.kd(student, teacher, TAU, LAM, norms, rates),
        fitnets.hint(student, teacher, middle, 2, 1, norms, rates),
        fitnets.fitnet(student, teacher, TAU, LAM, norms, rates),
    ):
        assert stage.norms is norms
        assert stage.rates is rates


def test_the_teachers_last_phase_is_its_first_without_noise():
    _, teacher, _, x, labels = actors()
    first, last = fitnets.teacher(teacher), fitnets.teacher_all(teacher)
    assert (first.noise, last.noise) == (True, False)
    assert last == replace(first, name="teacher_all", noise=False)
    noisy = Sequential([Dropout(0.5)]) + teacher
    with_noise, without = (
        gradient(stage(noisy), x, None, labels, 1, np.random.default_rng(0))[0]
        for stage in (fitnets.teacher, fitnets.teacher_all)
    )
    assert with_noise != without == measure(fitnets.teacher(noisy), x, None, labels, 1)[0]


def test_the_errors_are_the_examples_whose_largest_logit_is_not_their_labels():
    logits = np.array([[9.0, 1.0, 2.0], [1.0, 3.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 0.0]])
    assert measure(fitnets.backprop(Sequential([])), logits, None, np.array([0, 1, 2, 0]), 1)[1] == 1


def test_what_a_stage_measures_is_the_references_loss_and_a_count_of_errors():
    student, teacher, middle, x, labels = actors()
    logits, targets = student(x), teacher(x)
    wrong = int((logits.argmax(axis=1) != labels).sum())
    hint = fitnets.hint(student, teacher, middle, 2, 1)
    for stage, target, loss, errors in (
        (fitnets.backprop(student), None, reference_losses.cross_entropy(logits, labels), wrong),
        (
            fitnets.kd(student, teacher, TAU, LAM),
            targets,
            reference_losses.distillation_loss(logits, targets, labels, TAU, LAM(2)),
            wrong,
        ),
        (hint, hint.target(x), reference_losses.hint_loss(middle(student[:2](x)), teacher[:1](x)), 0),
    ):
        measured = measure(stage, x, target, labels, 2)
        close(measured[0], loss)
        assert measured[1] == errors
        close(gradient(stage, x, target, labels, 2, share=0.25)[0], 0.25 * loss)


def test_a_slice_shares_its_layers_and_a_sum_renumbers_their_parameters():
    student, _, middle, x, _ = actors()
    guided = student[:2] + middle
    assert len(guided) == 4
    assert guided.params["2.w"] is middle.params["0.w"]
    assert guided.params["1.0.w"] is student.params["1.0.w"]
    assert student[1:].params["0.0.w"] is student.params["1.0.w"]
    assert isinstance(guided[2], Conv2d)
    np.testing.assert_array_equal(guided(x), middle(student[1](student[0](x))))
    np.testing.assert_array_equal((student[0][0] + student[0][1])(x), student[0](x))
    assert Sequential([]).weight_gradients(x, []) == {}


def test_nothing_below_the_first_layer_with_parameters_is_propagated_back_to(monkeypatch):
    student, _, _, x, _ = actors()
    network = Sequential([Dropout(0.5), Sequential([Dropout(0.5), *student[0]])]) + student[1:]
    y, cache = network.forward(x)
    wanted = network.backward(np.ones_like(y), cache)[1]
    lowest = student[0][0]
    monkeypatch.setattr(lowest, "backward", None)
    grads = network.weight_gradients(np.ones_like(y), cache)
    assert grads.keys() == wanted.keys() == network.params.keys()
    for name, g in grads.items():
        close(g, wanted[name])
    assert Sequential([Dropout(0.5), Sequential([])]).weight_gradients(x, [None, []]) == {}


@pytest.mark.parametrize(("epoch", "lam"), [(0, 4.0), (5, 4.0), (6, 3.5), (8, 2.5), (11, 1.0), (12, 1.0), (500, 1.0)])
def test_lambda_falls_linearly_and_stays(epoch, lam):
    assert fitnets.linear(4.0, 1.0, 5, 11)(epoch) == lam


def test_a_schedule_without_length_is_a_step():
    assert [fitnets.linear(4.0, 1.0, 5, 5)(epoch) for epoch in (4, 5, 6)] == [4.0, 1.0, 1.0]
