"""The checks are checked: planted bugs, each with the property that catches it, and what differences cannot see."""

from pathlib import Path

import numpy as np
import pytest
from properties import (
    an_empty_batch_gives_no_gradient_or_is_refused,
    backward_is_linear_in_dy,
    backward_is_the_derivative_of_forward,
    equals_the_reference,
    every_parameter_has_a_gradient_of_its_shape,
    examples_do_not_meet,
    far_logits_are_scipys,
    float32_stays_float32,
    max_norm_is_the_references,
    memory_layout_does_not_matter,
    nothing_passed_in_is_written_to,
    the_same_noise_gives_the_same_bits,
    ties_go_to_the_first,
)

from minifit import UserError, audit, gradcheck, losses, optimizers
from minifit.layers import Conv2d, Linear, Maxout, MaxPool2d, ReLU, Softmax
from minifit.problems import Case, Problem, of_layer, of_loss, spaced

ROOT = Path(__file__).resolve().parents[2]
LABELS = np.array([1, 0, 2])


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def linear(kind):
    return of_layer(kind(values(4, 4), values(4)), values(3, 4, seed=1))


def conv(kind):
    return of_layer(kind(values(3, 2, 2, 3), values(3), pad=1), values(2, 4, 5, 2, seed=1))


def maxout(kind):
    return of_layer(kind(2), spaced((3, 6), np.random.default_rng(0)))


def pool(kind):
    return of_layer(kind(3, 2), spaced((2, 5, 4, 2), np.random.default_rng(0)))


def relu(kind):
    return of_layer(kind(), spaced((3, 4), np.random.default_rng(0)))


def softmax(kind):
    return of_layer(kind(3.0), values(3, 4))


def distillation(loss):
    return of_loss(loss, values(3, 4), values(3, 4, seed=1), LABELS, tau=3.0, lam=4.0)


def hint(loss):
    return of_loss(loss, values(3, 2, 2), values(3, 2, 2, seed=1))


# What is planted: bugs in backward alone, then bugs that backward shares with forward.


class WrongSign(Linear):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return -dx, grads


class NotTransposed(Linear):
    def backward(self, dy, cache):
        return dy @ self.params["w"], super().backward(dy, cache)[1]


class SlightlyLarge(Linear):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx, grads | {"w": grads["w"] * (1 + 1e-5)}


class BiasOfOneExample(Linear):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx, grads | {"b": dy[0]}


class NoBiasGradient(Linear):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx, {"w": grads["w"]}


class ColumnOfBiases(Linear):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx, grads | {"b": grads["b"][:, None]}


class NotANumber(Linear):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx * np.nan, grads


class Forgotten(ReLU):
    def backward(self, dy, cache):
        return 0 * dy, {}


class FilterFlippedBackward(Conv2d):
    def backward(self, dy, cache):
        flipped = type(self).__mro__[1](self.params["w"][::-1, ::-1], self.params["b"], self.pad)
        return flipped.backward(dy, cache)[0], super().backward(dy, cache)[1]


class PadOffBackward(Conv2d):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return np.roll(dx, 1, axis=1), grads


class PiecesSwappedBackward(Maxout):
    def backward(self, dy, cache):
        dx, _ = super().backward(dy, cache)
        return dx.reshape(*dy.shape, self.pieces).swapaxes(-1, -2).reshape(dx.shape), {}


class NoTauBackward(Softmax):
    def backward(self, dy, cache):
        return self.tau * super().backward(dy, cache)[0], {}


class AddsOne(Linear):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx + 1, grads


def distillation_without_tau_in_its_gradient(logits, teacher_logits, labels, tau, lam):
    loss, dlogits = losses.distillation_loss(logits, teacher_logits, labels, tau, lam)
    dhard = losses.cross_entropy(logits, labels)[1]
    return loss, dhard + tau * (dlogits - dhard)


def hint_loss_of_sums_with_the_gradient_of_means(guided, hint):
    loss, dguided = losses.hint_loss(guided, hint)
    return loss, dguided / hint[0].size


class FilterFlipped(Conv2d):
    def __init__(self, w, b, pad):
        super().__init__(w, b, pad)

    def forward(self, x, rng=None):
        y, cache = super().forward(x[:, ::-1, ::-1])
        return y[:, ::-1, ::-1], cache

    def backward(self, dy, cache):
        dx, grads = super().backward(dy[:, ::-1, ::-1], cache)
        return dx[:, ::-1, ::-1], grads


class PadOff(Conv2d):
    def forward(self, x, rng=None):
        return super().forward(np.roll(x, 1, axis=2))

    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return np.roll(dx, -1, axis=2), grads


class UnitMajor(Maxout):
    def forward(self, x, rng=None):
        z = x.reshape(*x.shape[:-1], -1, self.pieces).swapaxes(-1, -2)
        return super().forward(z.reshape(x.shape))

    def backward(self, dy, cache):
        dx, _ = super().backward(dy, cache)
        return dx.reshape(*dy.shape[:-1], self.pieces, -1).swapaxes(-1, -2).reshape(dx.shape), {}


def distillation_with_tau_on_the_students_side_only(logits, teacher_logits, labels, tau, lam):
    return losses.distillation_loss(logits, teacher_logits * tau, labels, tau, lam)


def hint_loss_of_means(guided, hint):
    loss, dguided = losses.hint_loss(guided, hint)
    return loss / hint[0].size, dguided / hint[0].size


distillation_with_tau_on_the_students_side_only.stands_for = "distillation_loss"
hint_loss_of_means.stands_for = "hint_loss"


class InPlace(ReLU):
    def forward(self, x, rng=None):
        positive = x > 0
        x *= positive
        return x, positive


class SpendsItsCache(Softmax):
    def backward(self, dy, cache):
        dx, _ = super().backward(dy, cache.copy())
        cache *= 0
        return dx, {}


class Upcast(ReLU):
    def forward(self, x, rng=None):
        y, cache = super().forward(x)
        return y * np.float64(1), cache


class UpcastBackward(ReLU):
    def backward(self, dy, cache):
        return dy * cache.astype(float), {}


class MeanOfTheBatch(Linear):
    def forward(self, x, rng=None):
        y, cache = super().forward(x)
        return y / len(x), cache

    def backward(self, dy, cache):
        return super().backward(dy / len(dy), cache)


class Centred(Linear):
    def forward(self, x, rng=None):
        return super().forward(x - x.mean(axis=0))

    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx - dx.mean(axis=0), grads


class RowsOfMemory(ReLU):
    def forward(self, x, rng=None):
        y, cache = super().forward(x)
        return y.ravel(order="K").reshape(y.shape), cache


class OwnNoise(ReLU):
    def forward(self, x, rng=None):
        y, cache = super().forward(x)
        return y * np.random.default_rng().random(), cache


class ShiftedByTheLargestOfAll(Softmax):
    def forward(self, x, rng=None):
        y = np.exp((x - x.max()) / self.tau)
        y /= y.sum(axis=-1, keepdims=True)
        return y, y


class TieToTheLast(Maxout):
    def forward(self, x, rng=None):
        z = x.reshape(*x.shape[:-1], self.pieces, -1)
        return z.max(axis=-2), self.pieces - 1 - z[..., ::-1, :].argmax(axis=-2)

    def backward(self, dy, cache):
        return np.concatenate([dy * (cache == piece) for piece in range(self.pieces)], axis=-1), {}


class TieToAll(Maxout):
    def forward(self, x, rng=None):
        z = x.reshape(*x.shape[:-1], self.pieces, -1)
        return z.max(axis=-2), z == z.max(axis=-2, keepdims=True)

    def backward(self, dy, cache):
        return (dy[..., None, :] * cache).reshape(*dy.shape[:-1], -1), {}


class FromTheLast(MaxPool2d):
    def forward(self, x, rng=None):
        self._check(x)
        return super().forward(x[:, ::-1, ::-1])[0][:, ::-1, ::-1], x

    def backward(self, dy, cache):
        _, kept = super().forward(cache[:, ::-1, ::-1])
        return super().backward(dy[:, ::-1, ::-1], kept)[0][:, ::-1, ::-1], {}


class Late(MaxPool2d):
    def forward(self, x, rng=None):
        y, cache = super().forward(np.roll(x, -1, axis=1))
        return y, cache

    def backward(self, dy, cache):
        return np.roll(super().backward(dy, cache)[0], 1, axis=1), {}


class DividesByTheBatch(Linear):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        with np.errstate(invalid="ignore"):
            return dx, {name: g * len(dy) / np.float64(len(dy)) for name, g in grads.items()}


derivative = backward_is_the_derivative_of_forward
distillation_loss, hint_loss = losses.distillation_loss, losses.hint_loss

# how it is drawn, what is right, what is planted, the property that catches it
SEEN = [
    (linear, Linear, WrongSign, derivative),
    (linear, Linear, NotTransposed, derivative),
    (linear, Linear, SlightlyLarge, derivative),
    (linear, Linear, BiasOfOneExample, derivative),
    (linear, Linear, NoBiasGradient, derivative),
    (linear, Linear, NoBiasGradient, every_parameter_has_a_gradient_of_its_shape),
    (linear, Linear, ColumnOfBiases, derivative),
    (linear, Linear, ColumnOfBiases, every_parameter_has_a_gradient_of_its_shape),
    (linear, Linear, NotANumber, derivative),
    (linear, Linear, AddsOne, derivative),
    (linear, Linear, AddsOne, backward_is_linear_in_dy),
    (relu, ReLU, Forgotten, derivative),
    (conv, Conv2d, FilterFlippedBackward, derivative),
    (conv, Conv2d, PadOffBackward, derivative),
    (maxout, Maxout, PiecesSwappedBackward, derivative),
    (softmax, Softmax, NoTauBackward, derivative),
    (distillation, distillation_loss, distillation_without_tau_in_its_gradient, derivative),
    (hint, hint_loss, hint_loss_of_sums_with_the_gradient_of_means, derivative),
    (relu, ReLU, InPlace, derivative),  # it has moved x onto the kink; on a value inside a network nobody would see it
    (relu, ReLU, InPlace, nothing_passed_in_is_written_to),
    (relu, ReLU, OwnNoise, the_same_noise_gives_the_same_bits),
]
UNSEEN = [  # by differences: backward is the derivative of a forward that is wrong
    (conv, Conv2d, FilterFlipped, equals_the_reference),
    (conv, Conv2d, PadOff, equals_the_reference),
    (maxout, Maxout, UnitMajor, equals_the_reference),
    (distillation, distillation_loss, distillation_with_tau_on_the_students_side_only, equals_the_reference),
    (hint, hint_loss, hint_loss_of_means, equals_the_reference),
    (softmax, Softmax, SpendsItsCache, nothing_passed_in_is_written_to),
    (relu, ReLU, Upcast, float32_stays_float32),
    (relu, ReLU, UpcastBackward, float32_stays_float32),
    (linear, Linear, MeanOfTheBatch, examples_do_not_meet),
    (linear, Linear, Centred, examples_do_not_meet),
    (relu, ReLU, RowsOfMemory, memory_layout_does_not_matter),
    (softmax, Softmax, ShiftedByTheLargestOfAll, far_logits_are_scipys),
    (maxout, Maxout, TieToTheLast, ties_go_to_the_first),
    (maxout, Maxout, TieToAll, ties_go_to_the_first),
    (pool, MaxPool2d, FromTheLast, ties_go_to_the_first),
    (pool, MaxPool2d, Late, equals_the_reference),
    (linear, Linear, DividesByTheBatch, an_empty_batch_gives_no_gradient_or_is_refused),
]


def planted(rows):
    names = [f"{wrong.__name__} by {holds.__name__}" for _, _, wrong, holds in rows]
    return pytest.mark.parametrize(("problem", "right", "wrong", "holds"), rows, ids=names)


def rng():
    return np.random.default_rng(5)


@planted(SEEN + UNSEEN)
def test_a_planted_bug_is_caught_and_what_is_right_passes(problem, right, wrong, holds):
    holds(problem(right), rng())
    with pytest.raises((AssertionError, ValueError)):
        holds(problem(wrong), rng())


@planted(UNSEEN)
def test_what_differences_cannot_see_needs_its_own_property(problem, right, wrong, holds):
    derivative(problem(wrong), rng())


def test_a_missing_axis_in_max_norm_is_caught_by_the_reference():
    def without_the_channels(w, limit):
        optimizers.max_norm(w.reshape(-1, w.shape[2] * w.shape[3]), limit)

    max_norm_is_the_references(optimizers.max_norm, 2 * values(3, 2, 2, 4), 1.5)
    with pytest.raises(AssertionError):
        max_norm_is_the_references(without_the_channels, 2 * values(3, 2, 2, 4), 1.5)


def check(f, x, seed=0, **options):
    return gradcheck.check(f, {"x": np.asarray(x, float)}, np.random.default_rng(seed), **options)


def cubed(factor=1.0, power=3):
    return lambda arrays: (arrays["x"] ** power, lambda dy: {"x": factor * power * dy * arrays["x"] ** (power - 1)})


def test_all_oracles_agree_with_a_right_gradient_far_inside_the_tolerance():
    made = check(cubed(power=1), values(5), affine=True)
    assert [c.oracle for c in made] == ["differences", "complex step", "adjoint"]
    assert max(c.ratio for c in made) < 0.01


def test_every_oracle_sees_a_gradient_a_little_too_large():
    found = list(gradcheck.comparisons(cubed(1 + 2e-8, 1), {"x": 1 + abs(values(5))}, rng(), affine=True))
    assert [c.ratio > 1 for c in found] == [True, True, True]
    assert [c.ratio > 1 for c in gradcheck.comparisons(cubed(1 + 1e-9), {"x": 1 + abs(values(5))}, rng())] == [
        False,
        True,
    ]


def test_the_message_has_both_numbers_and_the_arrays_name():
    with pytest.raises(
        gradcheck.GradientError, match=r"dx: backward says -?\d\S+, differences -?\d\S+; .*tolerance 1e-08"
    ):
        check(cubed(-1.0), values(5))


def test_cancellation_does_not_widen_or_narrow_the_tolerance():
    (first, *_) = check(lambda arrays: (arrays["x"].sum(), lambda dy: {"x": dy * np.ones(2)}), [1.0, 1.0])
    assert first.scale > 0.25  # whatever the signs of the direction


def test_every_coordinate_is_looked_at_where_there_are_few():
    made = check(cubed(), values(2, 3), coordinates=6)
    assert [c.oracle for c in made] == ["differences", *["complex step"] * 7]  # differences: along a direction only
    assert len(check(cubed(), values(2, 3), coordinates=5)) == 2


def test_a_nan_fails_before_the_kink_is_asked_about():
    def f(arrays):
        return abs(arrays["x"]), lambda dy: {"x": dy * np.nan}

    with pytest.raises(gradcheck.GradientError, match="nan"):
        check(f, [1e-5, 1.0])


@pytest.mark.parametrize(("oracle", "floor"), [("differences", 1e-10), ("complex_step", 1e-14), ("adjoint", 1e-14)])
def test_the_absolute_floor_is_the_one_that_is_told(oracle, floor):
    said = gradcheck.__doc__, audit.KEY
    assert all(f"{floor:.0e}" in text for text in said)
    along = gradcheck.Along(lambda arrays: (0 * arrays["x"], None), {"x": np.zeros(1)}, "x", np.ones(1))
    for error, passes in ((0.9 * floor, True), (1.1 * floor, False)):
        assert (getattr(gradcheck, oracle)(along, 1.0, error, 0.0).ratio <= 1) == passes


def test_a_forward_of_nan_fails():
    def f(arrays):
        return arrays["x"] * np.nan, lambda dy: {"x": dy}

    with pytest.raises(gradcheck.GradientError, match="nan"):
        check(f, [1.0])


def relu_of(gradient):
    return lambda arrays: (arrays["x"] * (arrays["x"] > 0), lambda dy: {"x": dy * gradient(arrays["x"])})


@pytest.mark.parametrize("x", [1e-6, -1e-6, 3e-5, -3e-5, 8e-5, 9.5e-5, -9.5e-5])
def test_a_draw_that_crosses_a_kink_is_said_to(x):
    with pytest.raises(gradcheck.KinkCrossed):
        check(relu_of(lambda x: x > 0), [x, 1.0])


def test_a_gradient_that_forgets_is_wrong_and_not_a_kink():
    with pytest.raises(gradcheck.GradientError):
        check(relu_of(lambda x: 0 * x), [0.5, 1.0])


@pytest.mark.parametrize("x", [1e-3, -1e-3])
def test_beyond_the_step_there_is_no_kink(x):
    check(relu_of(lambda x: x > 0), [x, 1.0])


def test_the_complex_step_steps_over_no_kink():
    found = []
    with pytest.raises(gradcheck.KinkCrossed):
        found += gradcheck.comparisons(relu_of(lambda x: x > 0), {"x": np.array([1e-6])}, rng())
    along = gradcheck.Along(relu_of(lambda x: x > 0), {"x": np.array([1e-6])}, "x", np.ones(1))
    assert gradcheck.complex_step(along, 1.0, 1.0, 1.0).error == 0


def broken(integer, rng):
    return of_layer(WrongSign(rng.normal(size=(3, 2)), rng.normal(size=2)), rng.normal(size=(integer(1, 9), 3)))


def test_the_audit_names_the_row_and_the_seed_that_repeats_the_failure(monkeypatch):
    def sometimes(integer, rng):
        return broken(integer, rng) if integer(1, 4) == 1 else linear(Linear)

    rows = [Case("sometimes wrong", sometimes), Case("right", lambda i, r: linear(Linear))]
    monkeypatch.setattr(audit, "cases", lambda: rows)
    wrong, right = audit.run(draws=20, seed=7)
    assert right.failure is None
    assert right.ratio < 1
    assert wrong.ratio > 1
    seed = int(wrong.failure.split("--seed ")[1].split()[0])
    assert wrong.failure.startswith("sometimes wrong: dx: backward says ")
    assert "--row 'sometimes wrong'" in wrong.failure
    (again,) = audit.run(draws=1, seed=seed, only="sometimes")
    assert again.failure == wrong.failure
    text = audit.table([wrong, right])
    assert "FAILED" in text
    assert wrong.failure in text
    assert text.endswith("(sometimes wrong)")
    assert "1 of 2 rows pass" in text


def test_a_row_that_raises_or_never_decides_fails_and_the_next_is_run(monkeypatch):
    def raises(integer, rng):
        raise TypeError("a message")

    def crosses(integer, rng):
        return of_layer(ReLU(), 1e-5 * np.ones((1, 2)))

    rows = [Case("raises", raises), Case("crosses", crosses, kinks=True), Case("crosses alone", crosses)]
    monkeypatch.setattr(audit, "cases", lambda: [*rows, Case("right", lambda i, r: linear(Linear))])
    failures = [result.failure for result in audit.run(draws=1)]
    assert "TypeError: a message" in failures[0]
    assert f"no draw of {audit.TRIES} kept clear of kinks" in failures[1]
    assert "no draw of 1 kept clear of kinks" in failures[2]
    assert failures[3] is None


class Rounds(Linear):
    """Loses four digits of its gradients."""

    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx, {name: (g + 1e4) - 1e4 for name, g in grads.items()}


class RoundsAndIsSlightlyLarge(Rounds, SlightlyLarge):
    pass


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="here extended precision has no more digits")
def test_rounding_beyond_the_tolerance_is_told_from_a_wrong_gradient(monkeypatch):
    rounding, wrong = linear(Rounds), linear(RoundsAndIsSlightlyLarge)
    for problem in (rounding, wrong):
        made = gradcheck.comparisons(problem, problem.arrays, rng(), affine=True)
        assert max(comparison.ratio for comparison in made) > 1
    rows = [Case("rounds", lambda i, r: rounding, affine=True), Case("wrong", lambda i, r: wrong, affine=True)]
    monkeypatch.setattr(audit, "cases", lambda: rows)
    right, failed = audit.run(draws=3)
    assert right.failure is None and 0 < right.ratio < 1 and "backward says" in failed.failure


def test_the_audit_repeats_itself_and_a_row_does_not_hang_on_the_others():
    one, (other,) = audit.run(draws=2, seed=3, only="Maxout"), audit.run(draws=2, seed=3, only="Maxout 5")
    assert [r.row for r in one] == ["Maxout 1", "Maxout 2", "Maxout 5", "Maxout 5 of features"]
    assert one[2].worst == other.worst
    assert audit.run(draws=2, seed=4, only="Maxout 5")[0].worst != other.worst


def test_a_row_by_its_whole_name_runs_alone_and_its_failure_repeats_itself(monkeypatch):
    monkeypatch.setattr(audit, "cases", lambda: [Case("wrong at last", broken), Case("wrong", broken)])
    assert [r.row for r in audit.run(draws=1, only="wr")] == ["wrong at last", "wrong"]
    (wrong,) = audit.run(draws=3, seed=4, only="wrong")
    row, seed = wrong.failure.split("--row '")[1].split("' --seed ")
    (again,) = audit.run(draws=1, seed=int(seed.split()[0]), only=row)
    assert again.failure == wrong.failure and again.row == "wrong"


def test_what_failed_before_a_kink_is_kept():
    def f(arrays, examples, rng):
        x, w = arrays["x"], arrays["w"]
        return x + w * (w > 0), lambda dy: {"x": 2 * dy, "w": dy * (w > 0)}

    def wrong_and_on_a_kink(integer, rng):
        return Problem(None, f, {"x": np.ones(2), "w": 1e-5 * np.ones(2)})

    found = audit.examine(Case("", wrong_and_on_a_kink), None, rng())
    assert found and all(c.name == "x" and c.ratio > 1 for c in found)


def test_the_table_shows_every_array_of_every_row_and_the_worst_ratio():
    text = audit.table(audit.run(draws=2, only="Linear") + audit.run(draws=1, only="student[:2]"))
    for word in (
        "Linear",
        "dx ",
        "dw ",
        "db ",
        "d1.0.b ",
        "1e-8|1e-13|1e-13  dx",
        "1e-8|1e-13        dx",
        "absolute errors of 1e-10|1e-14|1e-14",
        "2 of 2 rows pass",
        "worst ratio of error to tolerance",
    ):
        assert word in text
    assert max(len(line) for line in text.splitlines()) <= 130


def test_an_unknown_row_lists_the_rows_and_no_draws_are_refused():
    with pytest.raises(UserError, match=r"--row convolution: no such row; the rows are Linear, Conv2d"):
        audit.run(only="convolution")
    with pytest.raises(UserError, match="--draws 0: wanted at least 1"):
        audit.run(draws=0)
    with pytest.raises(UserError, match="--seed -1: wanted 0 or more"):
        audit.run(seed=-1)
