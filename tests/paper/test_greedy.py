"""Greedy layer-wise training: contrastive divergence against enumeration, and each stage against the reference."""

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import strict
from properties import as_reference, close
from scipy.special import expit, xlogy

from minifit import UserError, greedy, networks, optimizers
from minifit.backend import to_host
from minifit.composites import Autoassociator, Sequential, weights
from minifit.experiments import MNIST_PAPER
from minifit.fitnets import LABELS, Stage, gradient, measure
from minifit.greedy import RECONSTRUCTION, contrastive_divergence
from minifit.layers import Bias, Conv2d, Flatten, Linear
from minifit.networks import Conv, FullyConnected, Network, Output
from minifit.task import Task
from reference import losses as reference_losses
from reference import ops, rbm, train
from reference import optimizers as reference_optimizers

STUDENT = Network("student", (4, 3, 1), (Conv(2, 2), Conv(1, 2, pad=1, pool=(2, 2)), FullyConnected(2), Output(2)))
NETWORKS = {"teacher": STUDENT, "student": STUDENT}
METHODS = {method.name: method for method in greedy.LAYERWISE}
every_method = pytest.mark.parametrize("name", METHODS)
MAPS = {"features": (5,), "images": (3, 2, 1), "maps": (4, 3, 2)}
every_kind = pytest.mark.parametrize("kind", MAPS)


def machine(kind="features", xp=np, dtype=np.float64):
    """(a machine of three hidden units, or maps, with weights of order 1; four examples of what it sees)"""
    rng, shape = np.random.default_rng(3), MAPS[kind]

    def draw(*shape):
        return xp.asarray(rng.normal(size=shape).astype(dtype))

    affine = Conv2d(draw(2, 3, 2, 3), draw(3), pad=1) if kind == "maps" else Linear(draw(np.prod(shape), 3), draw(3))
    encoder = Sequential([*([Flatten()] if kind == "images" else []), affine])
    return Autoassociator(encoder, draw(*shape)), xp.asarray(rng.random((4, *shape)).astype(dtype))


def stage(network, **settings):
    settings = {"classifies": False, "reconstructs": True, "rule": contrastive_divergence} | settings
    return Stage("rbm", network, RECONSTRUCTION, None, **settings)


class Scripted:
    """A generator that switches units on and off by a list of patterns, one for each draw."""

    def __init__(self, *patterns):
        self.patterns = list(patterns)

    def random(self, shape, dtype):
        return 1 - np.reshape(self.patterns.pop(0), shape).astype(dtype)  # a unit is on where it is below p < 1


def enumerated(network):
    """All states of both sides, and exp(-E) of each pair of them, (2^D, 2^E), from the energy alone."""
    encoder, b = as_reference(network.encoder), network.decoder.params["b"]
    visible, hidden = (np.array(list(product([0.0, 1.0], repeat=n))) for n in (5, 3))
    weights = [np.exp(-rbm.energy(np.repeat(v[None], len(hidden), 0), hidden, encoder, b)) for v in visible]
    return visible, hidden, np.array(weights)


def expected(network, v0):
    """The mean of contrastive divergence over all that it may draw, for one v0."""
    visible, hidden, weights = enumerated(network)
    given_v0 = np.exp(-rbm.energy(np.repeat(v0[None], 8, 0), hidden, as_reference(network.encoder), 0 * v0))
    p_h, p_v = given_v0 / given_v0.sum(), weights / weights.sum(axis=0)  # P(h | v0), P(v | h)
    p_h_of_v = weights / weights.sum(axis=1, keepdims=True)
    p_v1, q1 = p_v @ p_h, p_h_of_v @ hidden
    return {
        "encoder.0.w": np.einsum("v,vd,ve->de", p_v1, visible, q1) - np.outer(v0, p_h @ hidden),
        "encoder.0.b": p_v1 @ q1 - p_h @ hidden,
        "decoder.b": p_v1 @ visible - v0,
    }


def mean_over_draws(network, v0):
    """The same by calling the rule with every pattern that it can draw, weighed by its probability."""
    visible, hidden, weights = enumerated(network)
    p_v, total = weights / weights.sum(axis=0), {}
    q0 = network.up(v0[None])[0][0]
    for h, pattern in enumerate(hidden):
        p_h = np.prod(np.where(pattern, q0, 1 - q0))
        for v, image in enumerate(visible):
            _, grads = contrastive_divergence(stage(network), v0[None], None, None, 1, Scripted(pattern, image))
            for name, g in grads.items():
                total[name] = total.get(name, 0) + p_h * p_v[v, h] * g
    return total


def test_contrastive_divergence_is_in_expectation_what_enumeration_gives():
    network, v = machine()
    for v0 in (v[0], np.array([1.0, 0, 0, 1, 1])):  # probabilities, or states
        found = mean_over_draws(network, v0)
        wanted = expected(network, v0)
        assert found.keys() == wanted.keys() == network.params.keys()
        for name, g in found.items():
            close(g, wanted[name])


def test_a_machine_whose_data_are_its_own_does_not_move():
    network, _ = machine()
    visible, _, weights = enumerated(network)
    p = weights.sum(axis=1) / weights.sum()
    moves = [expected(network, v) for v in visible]
    for name in network.params:
        close(sum(p_v * move[name] for p_v, move in zip(p, moves, strict=True)), 0 * network.params[name])


@every_kind
def test_contrastive_divergence_is_the_references_for_the_draws_it_made(kind):
    network, v0 = machine(kind)
    q0, rng = network.up(v0)[0], np.random.default_rng(5)
    draws = [rng.random(a.shape, np.float32) for a in (q0, v0)]
    wanted = rbm.contrastive_divergence(v0, as_reference(network.encoder), network.decoder.params["b"], draws)
    figure, grads = contrastive_divergence(stage(network), v0, None, None, 1, np.random.default_rng(5), 0.25)
    for g, other in zip((grads[name] for name in network.params), wanted, strict=True):
        close(g, 0.25 * other, rtol=1e-9)
    h0 = (draws[0] < q0).astype(float)
    logits = network.down(h0, network.up(v0)[1])
    close(figure, 0.25 * reference_losses.reconstruction_loss(logits, v0))


@every_kind
def test_both_conditionals_follow_from_the_energy(kind):
    network, v = machine(kind)
    q, cache = network.up(v)
    encoder, b = as_reference(network.encoder), network.decoder.params["b"]
    close(q, rbm.hidden(v, encoder, b))
    close(expit(network.down(q, cache)), rbm.visible(q, encoder, b))


def test_without_noise_probabilities_stand_for_draws():
    network, v0 = machine()
    figure, grads = contrastive_divergence(stage(network), v0, None, None, 1)
    v1 = expit(network(v0))
    q0, q1 = network.up(v0)[0], network.up(v1)[0]
    close(grads["encoder.0.w"], (v1.T @ q1 - v0.T @ q0) / 4)
    close(figure, measure(stage(network), v0, None, None, 1)[0])
    quiet = contrastive_divergence(stage(network, noise=False), v0, None, None, 1, np.random.default_rng(0))[1]
    np.testing.assert_array_equal(quiet["decoder.b"], grads["decoder.b"])


@every_kind
def test_contrastive_divergence_is_the_same_on_a_device_in_single_precision(kind):
    found, wanted = [], []
    for xp, results in ((strict, found), (np, wanted)):
        network, v0 = machine(kind, xp, np.float32)
        figure, grads = contrastive_divergence(stage(network), v0, None, None, 1, np.random.default_rng(5))
        results += [figure, *grads.values()]
        assert {g.dtype for g in grads.values()} == {np.dtype("f4")}
    for a, b in zip(map(to_host, found), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_draws_are_on_as_often_as_they_should_be():
    p = np.full((100, 1000), 0.3)
    drawn = greedy.drawn(p, np.random.default_rng(0))
    assert set(np.unique(drawn)) == {0, 1} and abs(drawn.mean() - 0.3) < 0.006  # four standard deviations
    assert greedy.drawn(np.zeros(2), Scripted([1, 1])).max() == 0  # a draw of 0 is not below a probability of 0
    assert greedy.drawn(np.ones(9), np.random.default_rng(0)).min() == 1


def walked(name, steps=0, make=None, **settings):
    """(task, x, labels, stages, losses) of a method; each stage takes so many steps before the next one."""
    start = {"init_range": 1.0, "init": "uniform"}
    task = Task(
        {"teacher": STUDENT, "student": STUDENT}, replace(MNIST_PAPER, **start, **settings), 8, dtype=np.float64
    )
    x, labels, stages, before = np.random.default_rng(3).random((2, 4, 3, 1)), np.array([1, 0]), [], []

    def train(stage):
        optimizer, rng = (make or (lambda: optimizers.SGD(0.1)))(), np.random.default_rng(1)
        for epoch in range(1, steps + 1):
            loss, grads = (stage.rule or gradient)(stage, x, None, labels, epoch, rng)
            optimizers.update(optimizer, weights(stage.network), grads)
            before.append(loss)
        stages.append(stage)
        return {"best_epoch": 1}

    METHODS[name].run(task, train)
    return task, x, labels, stages, before


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(greedy, "UNITS", (150, 75, 100))  # 2, 1, 2 for images of 12 pixels in place of 784
    network = greedy.deep(Task(NETWORKS, MNIST_PAPER, 0, draw=False)).layers
    assert [len(w) for name, w in network.params.items() if name.endswith("w")] == [12, 2, 1, 2]


SGD = partial(optimizers.SGD, 0.1, 0.9), partial(reference_optimizers.sgd, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("suffix", ["", "-student"])
def test_auto_associators_and_then_the_labels_agree_with_the_reference(suffix):
    make, update = SGD
    _, x, labels, stages, before = walked(f"greedy-autoassociator{suffix}")
    network = [as_reference(block) for block in stages[-1].network]
    codes = [[as_reference(stage.network)] for stage in stages[:-1]]
    expected = []
    for i, code in enumerate(codes):
        state = train.initial_state(code)
        for _ in range(2):
            code, state, loss = train.reconstruction_step(code, network[:i], x, state, update)
            expected.append(loss)
        w, c, _ = train.weights(code)
        network[i] = train.with_weights(network[i], [w, c])
    state = train.initial_state(network)
    for _ in range(2):
        network, state, loss = train.labels_step(network, x, labels, state, update)
        expected.append(loss)
    _, _, _, stages, before = walked(f"greedy-autoassociator{suffix}", 2, make)
    close(before, expected, rtol=1e-9)
    for p, other in zip(stages[-1].network.params.values(), train.weights(network), strict=True):
        close(p, other, rtol=1e-8)


@pytest.mark.parametrize("suffix", ["", "-student"])
def test_supervised_layers_and_then_the_labels_agree_with_the_reference(suffix):
    make, update = SGD
    _, x, labels, stages, before = walked(f"greedy-supervised{suffix}")
    network, expected = [as_reference(block) for block in stages[-1].network], []
    for i, classifier in enumerate([as_reference(stage.network) for stage in stages[:-1]]):
        state, seen = train.initial_state(classifier), train.forward(network[:i], x)
        for _ in range(2):
            classifier, state, loss = train.labels_step(classifier, seen, labels, state, update)
            expected.append(loss)
        network[i] = classifier[0]
    state = train.initial_state(network)
    for _ in range(2):
        network, state, loss = train.labels_step(network, x, labels, state, update)
        expected.append(loss)
    _, _, _, stages, before = walked(f"greedy-supervised{suffix}", 2, make)
    close(before, expected, rtol=1e-9)
    for p, other in zip(stages[-1].network.params.values(), train.weights(network), strict=True):
        close(p, other, rtol=1e-8)


@every_method
def test_a_greedy_stage_moves_its_own_layer_which_is_the_networks_and_no_other(name):
    _, x, labels, stages, _ = walked(name)
    *greedy_stages, last = stages
    assert len(greedy_stages) == len(last.network) - 1 and last.below is None and last.loss is LABELS
    for i, stage in enumerate(greedy_stages):
        assert stage.of == last.of and stage.name == greedy_stages[0].name != last.name == name
        assert (stage.below is None) if i == 0 else list(stage.below) == list(last.network)[:i]
        before = {key: p.copy() for key, p in last.network.params.items()}
        _, grads = (stage.rule or gradient)(stage, x, None, labels, 1, np.random.default_rng(0))
        optimizers.update(optimizers.SGD(0.1), weights(stage.network), grads)
        moved = {key for key, p in last.network.params.items() if not np.array_equal(p, before[key])}
        affine = "1" if f"{i}.1.w" in before else "0"
        assert moved == {f"{i}.{affine}.w", f"{i}.{affine}.b"}
        seen = Sequential(last.network[:i])(x)
        y, figure = stage.network(seen), measure(stage, x, None, labels, 1)[0]
        if stage.reconstructs:
            close(figure, reference_losses.reconstruction_loss(y, seen))
        else:
            close(figure, reference_losses.cross_entropy(y, labels))
        assert stage.classifies != stage.reconstructs and bool(stage.rule) == ("rbm" in name)


def test_one_seed_gives_all_methods_on_a_network_one_start():
    first = {name: walked(name)[3][-1].network.params for name in METHODS}
    first = {
        name: next(p.tobytes() for key, p in params.items() if key.endswith("w")) for name, params in first.items()
    }
    assert first["greedy-autoassociator"] == first["greedy-rbm"] == first["greedy-supervised"]
    assert first["greedy-autoassociator-student"] == first["greedy-rbm-student"]
    student = Task(NETWORKS, replace(MNIST_PAPER, init_range=1.0), 8, dtype=np.float64).network("student")
    assert first["greedy-supervised-student"] == student.params["0.0.w"].tobytes()


@pytest.mark.parametrize("name", [name for name in METHODS if "supervised" not in name])
def test_what_reconstructs_needs_pixels_between_0_and_1(name):
    with pytest.raises(UserError, match="in \\[0, 1\\]; wanted --preprocessing unit"):
        walked(name, preprocessing="whitened")
    assert walked("greedy-supervised", preprocessing="whitened")


def test_the_networks_have_the_sizes_of_their_sources(monkeypatch):
    monkeypatch.undo()
    task = Task({"teacher": networks.MNIST_TEACHER, "student": networks.MNIST_FITNET}, MNIST_PAPER, 0, draw=False)
    image = np.zeros((0, 28, 28, 1), np.float32)
    deep, thin = (make(task).layers for make in (greedy.deep, greedy.sigmoid_student))
    assert [w for w, _ in networks.count(deep, image)] == [784_000, 1_000_000, 1_000_000, 10_000]
    fitnet = np.sum(networks.count(networks.build(networks.MNIST_FITNET), image), axis=0)
    np.testing.assert_allclose(np.sum(networks.count(thin, image), axis=0), fitnet, rtol=0.04)


def test_an_encoder_has_one_affine_layer_and_a_bias_the_shape_of_an_example():
    affine = Linear(np.ones((2, 2)), np.ones(2))
    for encoder in (Sequential([]), Sequential([affine, affine]), Sequential([Bias(np.ones(2))])):
        with pytest.raises(ValueError, match="Autoassociator: an encoder of parameters"):
            Autoassociator(encoder, np.ones(2))
    with pytest.raises(ValueError, match=r"Bias: input \(4, 3\); wanted \(N, 2"):
        Bias(np.ones(2))(np.ones((4, 3)))


def test_the_references_decoders_are_the_adjoints_of_its_encoders():
    rng = np.random.default_rng(0)
    x, w, h = rng.normal(size=(2, 4, 5, 2)), rng.normal(size=(3, 2, 2, 3)), rng.normal(size=(2, 4, 6, 3))
    decoded = ops.conv2d_decoder(h, w, np.zeros((4, 5, 2)), pad=1)
    assert np.isclose((ops.conv2d(x, w, np.zeros(3), pad=1) * h).sum(), (x * decoded).sum(), rtol=1e-13)
    b = rng.normal(size=(4, 5, 2))
    close(ops.conv2d_decoder(h, w, b, pad=1) - decoded, np.broadcast_to(b, decoded.shape))
    w, b, h = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=(2, 3))
    close(ops.linear_decoder(h, w, b), h @ w.T + b)


def test_the_references_sigmoid_and_reconstruction_are_scipys():
    a, x = np.array([[-800.0, -1.0, 0.0], [2.0, 30.0, 800.0]]), np.array([[0.0, 0.3, 1.0], [0.6, 0.0, 1.0]])
    np.testing.assert_allclose(ops.sigmoid(a), expit(a), rtol=1e-15)
    p, rest = expit(a), expit(-a)
    wanted = -(xlogy(x, p) + xlogy(1 - x, rest)).sum() / 2
    np.testing.assert_allclose(reference_losses.reconstruction_loss(a, x), wanted, rtol=1e-14)
    loss, d = RECONSTRUCTION(a, x, None, 1)
    np.testing.assert_allclose(loss, wanted, rtol=1e-14)
    np.testing.assert_allclose(d, (p - x) / 2, atol=1e-16)
