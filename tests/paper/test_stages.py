"""Algorithm 1 twice: by minifit, and by the reference's forward, differences and optimiser, with no backward code."""

from collections import namedtuple
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from properties import as_reference, close

from minifit import fitnets, optimizers
from minifit.composites import Branches, Sequential, leaves, weights
from minifit.experiments import MNIST_PAPER
from minifit.fitnets import Stage, gradient, measure
from minifit.layers import Conv2d, Dropout, Linear, ReLU
from minifit.networks import Conv, FullyConnected, Network, Output, build
from minifit.optimizers import Ramp
from minifit.problems import settled
from minifit.task import Task
from reference import losses as reference_losses
from reference import optimizers as reference_optimizers
from reference import train

TAU, LAM = 3.0, Ramp(4.0, 1.0, 3)
SGD = partial(optimizers.SGD, 0.01, 0.9), partial(reference_optimizers.sgd, lr=0.01, momentum=0.9)
# At pylearn2's floor of 1e-5 RMSProp would make steps of the differences' own noise where a gradient is 0.
RMSPROP = partial(optimizers.RMSProp, 0.01, floor=1e-2), partial(reference_optimizers.rmsprop, lr=0.01, floor=1e-2)
both_rules = pytest.mark.parametrize(("make", "update"), [SGD, RMSPROP], ids=["sgd", "rmsprop"])
Actors = namedtuple("Actors", "student teacher middle stages x labels")


def small(pieces=2, **settings):
    """A task, two images and their labels; hints go from the student's layer 2 to the teacher's layer 1."""
    thin = Conv(2, 2, pieces=pieces, max_norm=0.9), Conv(1, 2, pad=1, pool=(2, 2), pieces=pieces)
    student = Network("student", (4, 3, 1), (*thin, FullyConnected(2, pieces), Output(2)))
    wide = Conv(2, 3, pool=(2, 2), pieces=pieces, max_norm=1.9)
    teacher = Network("teacher", (4, 3, 1), (wide, Output(2)))
    start = {"init_range": 1.0, "regressor_init_range": 1.0, "dropout_keep_input": 1.0, "dropout_keep": 1.0}
    settings = start | {"guided_layer": (2,), "hint_layer": (1,), "tau": TAU, "lam": LAM} | settings
    task = Task({"teacher": teacher, "student": student}, replace(MNIST_PAPER, **settings), 11, dtype=np.float64)
    return task, np.random.default_rng(3).normal(size=(2, 4, 3, 1)), np.array([1, 0])


def walked(task, method, best_epoch=1):
    """{key: stage} of a method, untrained, with random biases: of pieces without a bias, several may tie."""
    stages, rng = {}, np.random.default_rng(4)

    def train(stage):
        settled(stage.network, rng)
        stages[stage.key] = stage
        return {"best_epoch": best_epoch}

    next(m for m in fitnets.TABLE_4 if m.name == method).run(task, train)
    return stages


def actors(method, **settings):
    task, x, labels = small(**settings)
    stages = walked(task, method)
    for p in task.teacher.params.values() if task.teacher else ():
        p.flags.writeable = False
    student = stages[method].network
    middle = stages["hint"].network[2:] if "hint" in stages else None
    return Actors(student, task.teacher, middle, stages, x, labels)


def trained(stage, x, labels, optimizer, epochs=(1, 2, 3)):
    """One step an epoch, all in place; returns the losses before each."""
    target, before = None if stage.target is None else stage.target(x), []
    for epoch in epochs:
        loss, grads = gradient(stage, x, target, labels, epoch)
        optimizers.update(optimizer, [(name, w, 1.0, None) for name, w in stage.network.params.items()], grads)
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
    student, _, _, stages, x, labels = actors("backprop")
    reference, state = as_reference(student), train.initial_state(as_reference(student))
    expected = []
    for _ in range(3):
        reference, state, loss = train.labels_step(reference, x, labels, state, update)
        expected.append(loss)
    close(trained(stages["backprop"], x, labels, make()), expected, rtol=1e-9)
    agree(student, reference)


@both_rules
def test_distillation_agrees_with_the_two_stage_oracle_while_lambda_falls(make, update):
    student, teacher, _, stages, x, labels = actors("kd")
    reference, state = as_reference(student), train.initial_state(as_reference(student))
    expected = []
    for epoch in (1, 2, 3):
        reference, state, loss = train.distillation_step(
            reference, as_reference(teacher), x, labels, TAU, LAM(epoch), state, update
        )
        expected.append(loss)
    close(trained(stages["kd"], x, labels, make()), expected, rtol=1e-9)
    agree(student, reference)


@pytest.mark.parametrize(
    ("rule", "pieces", "kind"), [(SGD, 2, "conv"), (RMSPROP, 2, "conv"), (SGD, None, "conv"), (RMSPROP, 2, "fc")]
)
def test_hints_and_then_the_fitnet_agree_with_the_two_stage_oracle(rule, pieces, kind):
    make, update = rule
    student, teacher, middle, stages, x, labels = actors("fitnet", pieces=pieces, regressor=kind)
    assert (student[:2](x).shape[1:], teacher[:1](x).shape[1:]) == ((2, 2, 1), (1, 1, 2))
    teachers_bytes = [p.tobytes() for p in teacher.params.values()]
    theirs, their_middle, their_teacher = map(as_reference, (student, middle, teacher))
    before, middle_before = snapshot(student), snapshot(middle)

    state, expected = train.initial_state(theirs[:2], their_middle), []
    for _ in range(3):
        theirs, their_middle, state, loss = train.hint_step(theirs, their_middle, their_teacher, x, 2, 1, state, update)
        expected.append(loss)
    close(trained(stages["hint"], x, labels, make()), expected, rtol=1e-9)
    agree(student, theirs)
    agree(middle, their_middle)
    assert moved(before, student) == {"0.0.w", "0.0.b", "1.0.w", "1.0.b"}  # the guided layers, and
    assert moved(middle_before, middle) == set(middle.params)  # the regressor

    before, state, expected = snapshot(student), train.initial_state(theirs), []
    for epoch in (1, 2, 3):
        theirs, state, loss = train.distillation_step(theirs, their_teacher, x, labels, TAU, LAM(epoch), state, update)
        expected.append(loss)
    close(trained(stages["fitnet"], x, labels, make()), expected, rtol=1e-9)
    agree(student, theirs)
    assert moved(before, student) == set(student.params)
    assert [p.tobytes() for p in teacher.params.values()] == teachers_bytes


def test_each_stage_trains_what_its_line_of_algorithm_1_says():
    task, _, _ = small()
    stages = {}
    for method in fitnets.TABLE_4:
        stages |= walked(task, method.name)
    teacher, hint, fitnet = task.teacher, stages["hint"], stages["fitnet"]
    assert list(hint.network)[:2] == list(fitnet.network)[:2]  # the same layers, not copies: line 5
    assert list(hint.target) == [teacher[0]]
    assert list(stages) == ["teacher", "teacher_all", "backprop", "kd", "hint", "fitnet"]
    assert {key for key, stage in stages.items() if not stage.classifies} == {"hint"}
    assert {key for key, stage in stages.items() if stage.target is teacher} == {"kd", "fitnet"}
    assert {key for key, stage in stages.items() if stage.network is teacher} == {"teacher", "teacher_all"}
    assert {key for key, stage in stages.items() if stage.of == "teacher"} == {"teacher", "teacher_all"}
    assert {stage.loss.title for stage in stages.values()} == {"labels", "eq. 2", "eq. 3"}
    starts = [stages[key].network.params["3.0.w"] for key in ("backprop", "kd", "fitnet")]
    assert len({w.tobytes() for w in starts}) == 1 and len(set(map(id, starts))) == 3  # one start, three students


def test_a_second_pair_is_guided_after_the_first_and_has_a_regressor_of_its_own():
    task, _, _ = small(guided_layer=(1, 2), hint_layer=(1, 1), regressor="fc")
    found = []
    next(m for m in fitnets.TABLE_4 if m.name == "fitnet").run(
        task, lambda stage: found.append(stage) or {"best_epoch": 1}
    )
    first, second, last = found[-3:]
    assert [stage.name for stage in (first, second, last)] == ["hint", "hint", "fitnet"]
    assert first.network[0] is second.network[0] is last.network[0] and second.network[1] is last.network[1]
    assert not np.array_equal(first.network.params["2.w"][:4, :4], second.network.params["3.w"][:4, :4])
    assert [stage.part for stage in (first, second)] == [", layers 1-1, and regressor", ", layers 1-2, and regressor"]
    drawn = [
        task.regressor(last.network[:g], task.teacher[:1], *pair).params["1.w"]
        for g, pair in ((1, ()), (1, (1,)), (2, (2,)))
    ]
    for mine, theirs in zip(
        drawn, (first.network.params["2.w"], first.network.params["2.w"], second.network.params["3.w"]), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)  # the first pair's stream is that of one pair


def max_norms(network):
    return {w.name: w.max_norm for w in weights(network) if w.max_norm is not None}


def lr_scales(network):
    return {w.name: w.lr_scale for w in weights(network) if w.lr_scale != 1}


def test_the_largest_norms_and_learning_rates_go_with_the_layers_of_every_stage():
    task, _, _ = small(student_conv_lr_scale=0.05, teacher_conv_lr_scale=0.5, guided_lr_scale=0.1)
    kd, fitnet = walked(task, "kd"), walked(task, "fitnet")
    assert max_norms(task.teacher) == {"0.0.w": 1.9}
    assert lr_scales(task.teacher) == {"0.0.w": 0.5, "0.0.b": 0.5}
    assert max_norms(kd["kd"].network) == max_norms(fitnet["fitnet"].network) == {"0.0.w": 0.9}
    assert max_norms(fitnet["hint"].network) == {"0.0.w": 0.9, "2.w": MNIST_PAPER.regressor_max_norm}
    convolutions = {"0.0.w", "0.0.b", "1.0.w", "1.0.b"}
    assert lr_scales(kd["kd"].network) == dict.fromkeys(convolutions, 0.05)
    assert lr_scales(fitnet["fitnet"].network) == dict.fromkeys(convolutions, 0.05 * 0.1)


def test_a_part_of_a_block_learns_at_the_blocks_rate():
    student = Network("student", (4, 4, 1), (Conv(3, 2), Output(2)))
    network = build(student, dropout_keep_input=0.8, conv_lr_scale=0.05)
    assert lr_scales(network[0][1:]) == {"0.w": 0.05, "0.b": 0.05} and lr_scales(network[-1]) == {}


def test_a_scale_of_the_learning_rate_is_for_all_below_it_and_scales_multiply():
    inner, w, b = Linear(np.ones((2, 2)), np.ones(2), max_norm=3.0), np.ones((2, 2)), np.ones(2)
    block = Sequential([Dropout(0.5), inner, ReLU(), Linear(w, b)])
    inner.lr_scale, block.lr_scale = 0.5, 0.1
    branches = Branches(Sequential([block, Linear(w, b)]), {1: Linear(w, b, max_norm=2.0)})
    assert lr_scales(branches) == {"0.0.w": 0.05, "0.0.b": 0.05, "0.2.w": 0.1, "0.2.b": 0.1}
    assert max_norms(branches) == {"0.0.w": 3.0, "head1.w": 2.0}
    assert list(branches.params) == ["0.0.w", "0.0.b", "0.2.w", "0.2.b", "1.w", "1.b", "head1.w", "head1.b"]
    assert [(w.name, id(w.array)) for w in weights(branches)] == [(name, id(p)) for name, p in branches.params.items()]
    assert list(map(type, leaves(branches))) == [Dropout, Linear, ReLU, Linear, Linear, Linear]
    assert list(leaves(Sequential([]))) == []


def test_the_teachers_last_phase_is_its_first_without_noise_on_all_images_at_the_rate_of_its_best_epoch():
    schedule = optimizers.Schedule(
        "sgd", 0.5, 9, 9, lr_scale=Ramp(1.0, 0.5, 3), lr_decay=1.01, momentum=Ramp(0.1, 0.5, 5)
    )
    noise = {"dropout_keep_input": 0.8, "dropout_keep": 0.5}
    task, x, labels = small(**noise, teacher=schedule, teacher_all=7, train=300)
    first, last = walked(task, "teacher", best_epoch=2).values()
    assert last == replace(first, name="teacher_all", noise=False, on_all=True, schedule=last.schedule)
    rate = 0.5 * 0.75 * 1.01 ** -(2 * 3)  # 3 updates an epoch
    assert last.schedule == optimizers.Schedule("sgd", pytest.approx(rate), 7, 9, momentum=Ramp(0.2))
    with_noise, without = (gradient(s, x, None, labels, 1, np.random.default_rng(0))[0] for s in (first, last))
    assert with_noise != without == measure(first, x, None, labels, 1)[0]


def test_the_errors_are_the_examples_whose_largest_logit_is_not_their_labels():
    logits = np.array([[9.0, 1.0, 2.0], [1.0, 3.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 0.0]])
    assert measure(Stage("", Sequential([]), fitnets.LABELS, None), logits, None, np.array([0, 1, 2, 0]), 1)[1] == 1


def test_of_several_outputs_the_last_one_classifies_and_a_reconstruction_is_compared_with_what_is_seen():
    heads = tuple(np.array(rows) for rows in ([[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3, [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    seen = []

    def loss(prediction, target, labels, epoch):
        seen.append(target)
        return 0.25, None

    class Heads(ReLU):
        def forward(self, x, rng=None):
            return heads, None

    x, target, labels = np.ones((3, 2)), np.zeros((3, 2)), np.zeros(3, int)
    stage = Stage("", Heads(), loss, None)
    assert measure(stage, x, target, labels, 1) == (0.25, 2) and seen.pop() is target
    assert measure(replace(stage, classifies=False), x, target, labels, 1) == (0.25, 0) and seen.pop() is target
    measure(replace(stage, reconstructs=True), x, target, labels, 1)
    assert seen.pop() is x


def test_what_a_stage_measures_is_the_references_loss_and_a_count_of_errors():
    student, teacher, middle, stages, x, labels = actors("fitnet")
    logits, targets = student(x), teacher(x)
    wrong = int((logits.argmax(axis=1) != labels).sum())
    eq_2 = reference_losses.distillation_loss(logits, targets, labels, TAU, LAM(2))
    eq_3 = reference_losses.hint_loss(middle(student[:2](x)), teacher[:1](x))
    on_labels = replace(stages["fitnet"], loss=fitnets.LABELS)
    for stage, target, loss, errors in (
        (on_labels, None, reference_losses.cross_entropy(logits, labels), wrong),
        (stages["fitnet"], targets, eq_2, wrong),
        (stages["hint"], teacher[:1](x), eq_3, 0),
    ):
        measured = measure(stage, x, target, labels, 2)
        close(measured[0], loss)
        assert measured[1] == errors
        close(gradient(stage, x, target, labels, 2, share=0.25)[0], 0.25 * loss)
    assert stages["fitnet"].loss.figures(2) == {"lam": LAM(2)} and stages["hint"].loss.figures(2) == {}


def test_a_slice_shares_its_layers_and_a_sum_renumbers_their_parameters():
    student, _, middle, _, x, _ = actors("fitnet")
    guided = student[:2] + middle
    assert len(guided) == 4
    assert guided.params["2.w"] is middle.params["0.w"]
    assert guided.params["1.0.w"] is student.params["1.0.w"]
    assert student[1:].params["0.0.w"] is student.params["1.0.w"]
    assert student[:1].children == {"0": student[0]}
    assert isinstance(guided[2], Conv2d)
    np.testing.assert_array_equal(guided(x), middle(student[1](student[0](x))))
    np.testing.assert_array_equal((student[0][:1] + student[0][1])(x), student[0](x))
    assert Sequential([]).weight_gradients(x, []) == {}


def test_nothing_below_the_first_layer_with_parameters_is_propagated_back_to(monkeypatch):
    student, _, _, _, x, _ = actors("backprop")
    network = Sequential([Dropout(0.5), Sequential([Dropout(0.5), *student[0]])]) + student[1:]
    y, cache = network.forward(x)
    wanted = network.backward(np.ones_like(y), cache)[1]
    lowest = student[0][0]
    monkeypatch.setattr(lowest, "backward", None)
    grads = network.weight_gradients(np.ones_like(y), cache)
    assert grads.keys() == wanted.keys() == network.params.keys()
    for name, g in grads.items():
        close(g, wanted[name])
    branches = Branches(network, {2: Sequential([]), 3: Sequential([])})
    y, cache = branches.forward(x)
    all_wanted = branches.weight_gradients(tuple(map(np.ones_like, y)), cache)
    assert all_wanted.keys() == branches.params.keys()
    assert Sequential([Dropout(0.5), Sequential([])]).weight_gradients(x, [None, []]) == {}


@pytest.mark.parametrize(("epoch", "lam"), [(0, 4.0), (5, 4.0), (6, 3.5), (8, 2.5), (11, 1.0), (12, 1.0), (500, 1.0)])
def test_a_ramp_falls_linearly_and_stays(epoch, lam):
    assert Ramp(4.0, 1.0, 11, 5)(epoch) == lam


def test_a_ramp_without_length_is_a_step_and_without_an_end_a_constant():
    assert [Ramp(4.0, 1.0, 5, 5)(epoch) for epoch in (4, 5, 6)] == [4.0, 1.0, 1.0]
    assert [Ramp(4.0)(epoch) for epoch in (1, 2, 500)] == [4.0] * 3
