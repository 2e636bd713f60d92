"""minifit against the reference, which is loops and forward only, and against SciPy where it defines the same thing."""

from dataclasses import fields, is_dataclass

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from properties import by_reference, close, max_norm_is_the_references, quiet
from scipy.differentiate import derivative
from scipy.signal import convolve, correlate
from scipy.special import log_softmax as scipys_log_softmax

from minifit import convolution, layers, losses, optimizers, problems, stacked, transforms
from minifit import fast_convolution as filtering
from minifit.composites import Sequential
from minifit.layers import Conv2d, Dropout, Maxout, MaxPool2d, Softmax
from minifit.patches import equal_slices, fold, unfold
from minifit.stacked import Stacked
from minifit.transforms import SPLIT
from reference import ops, train
from reference import optimizers as reference_optimizers

SEEDS = st.integers(0, 2**32 - 1)
# Too slow for differences one by one: along one direction in each array. test_stages.py has stages one by one.
LARGE = "Conv2d 3x3", "Conv2d 5x5", "block conv maxout pool", "student", "method", "regressor fc maxout"
LARGE += "Branches of blocks", "Mean of blocks"


def every(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def smallish(low, high):
    return min(low + 1, high)


def by_differences(problem, dy, directions, h):
    """How fast <dy, y> changes with every element of every array, or along directions; by the reference alone."""
    f, arrays = by_reference(problem), problem.arrays

    def projection(moved):
        moved = dict(zip(arrays, moved, strict=True))
        if directions:
            moved = {name: a + moved[name] * directions[name] for name, a in arrays.items()}
        return float((dy * f(moved)).sum())

    return train.gradient(projection, [np.zeros(()) if directions else a for a in arrays.values()], h)


@every(problems.cases())
def test_a_gradient_is_the_references_by_differences(case):
    large = case.name.startswith(LARGE)
    for seed in range(60):  # the first draw whose answers at h and h/2 agree is clear of kinks
        rng = np.random.default_rng(seed)
        answers = [answer(quiet(problem), large, rng) for problem in problems.problems_of(case, smallish, rng)]
        if all(
            np.abs(c - f).max() < 1e-8 * max(1, np.abs(c).max()) for _, *cf in answers for c, f in zip(*cf, strict=True)
        ):
            break
    for found, coarse, _ in answers:
        for g, expected in zip(found, coarse, strict=True):
            close(g, expected, rtol=1e-8)


def answer(problem, large, rng):
    """What minifit says of every array, and the reference's differences at h and h/2."""
    y, pull = problem(problem.arrays)
    dy = rng.normal(size=y.shape)
    directions = {name: rng.normal(size=a.shape) for name, a in problem.arrays.items()} if large else {}
    grads = pull(dy)
    found = [(grads[name] * directions[name]).sum() if large else grads[name] for name in problem.arrays]
    return found, *(by_differences(problem, dy, directions, h) for h in (1e-4, 5e-5))


@given(st.floats(0.1, 1.0), st.booleans(), SEEDS)
def test_dropout_is_the_references_for_the_mask_it_drew(keep, rescale, seed):
    layer, x = Dropout(keep, rescale), np.random.default_rng(seed).normal(size=(3, 4, 2))
    y, cache = layer.forward(x, np.random.default_rng(seed))
    close(y, ops.dropout(x, y != 0, keep, rescale))
    dy = np.random.default_rng(seed + 1).normal(size=x.shape)
    close(layer.backward(dy, cache)[0], ops.dropout(dy, y != 0, keep, rescale))


def test_dropout_keeps_as_many_as_it_says():
    kept = Dropout(0.8, rescale=False)(np.ones((100, 1000)), np.random.default_rng(0)).mean()
    assert abs(kept - 0.8) < 0.005  # four standard deviations


def test_dropout_rescales_unless_told_not_to():
    x, rng = np.ones((100, 10)), np.random.default_rng(0)
    assert set(np.unique(Dropout(0.5)(x, rng))) == {0, 2}
    assert set(np.unique(Dropout(0.5, rescale=False)(x, rng))) == {0, 1}


def test_dropout_keeps_where_a_float32_from_the_generator_is_below_keep():
    drawn = np.random.default_rng(0).random(5, np.float32)
    kept = Dropout(float(drawn[2]))(np.ones((1, 5)), np.random.default_rng(0)) != 0
    np.testing.assert_array_equal(kept[0], drawn < drawn[2])


def test_unfold_and_fold_pad_nothing_unless_told():
    x = np.arange(12.0).reshape(1, 3, 4, 1)
    patches = unfold(x, 2, 2)
    np.testing.assert_array_equal(patches, unfold(x, 2, 2, pad=0))
    np.testing.assert_array_equal(fold(patches, x.shape), fold(patches, x.shape, pad=0))


def alike(one, other):
    """Whether two methods of computing a convolution are the same one, with the same matrices."""
    if type(one) is not type(other) or not is_dataclass(one):
        return type(one) is type(other) and np.array_equal(one, other)
    return all(alike(getattr(one, f.name), getattr(other, f.name)) for f in fields(one) if f.name != "kept")


def test_the_table_reaches_every_way_of_computing_a_convolution(monkeypatch):
    chosen = set()

    def spy(x, w, pad, evaluating):
        method, at = convolution.choose(x, w, pad, evaluating), (x.shape[1:3], w.shape[:2], pad, x.dtype)
        by_winograd = w.shape[:2] == (3, 3) and alike(method, filtering.winograd(*at))
        by_fourier = alike(method, filtering.fourier(*at))
        chosen.add("winograd" if by_winograd else "fourier" if by_fourier else type(method).__name__)
        return method

    monkeypatch.setattr(layers, "choose", spy)
    rng = np.random.default_rng(0)
    for case in [case for case in problems.CASES if case.name.startswith("Conv2d")] * 5:
        problem = case.draw(lambda low, high: int(rng.integers(low, high, endpoint=True)), rng)
        problem(problem.arrays)
    assert chosen == {"Unfolded", "Stacked", "winograd", "fourier"}


@pytest.mark.parametrize("size", [(8, 8), (9, 5), (6, 13)])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_the_multiplications_of_every_method_are_those_of_its_products(size, pad):
    r, s, c, k = kernel = (3, 3, 2, 5)
    p, q = size[0] + 2 * pad - 2, size[1] + 2 * pad - 2
    assert convolution.multiplications(size, kernel, pad) == p * q * r * s * c * k
    winograd = filtering.winograd(size, kernel[:2], pad, np.dtype("f8"))
    tiles = -(-p // 4) * -(-q // 4)  # of 6 x 6 inputs and 4 x 4 outputs
    assert winograd.multiplications(kernel) == tiles * (36 * 36 * c + 36 * c * k + 16 * 36 * k)
    fourier = filtering.fourier(size, kernel[:2], pad, np.dtype("f8"))
    l1, l2 = size[0] + pad, size[1] + pad
    reals, pairs, of_real = 2 - l2 % 2, (l2 - 1) // 2, 2 - l1 % 2 + 3 * ((l1 - 1) // 2)
    there = size[0] * l2 * size[1] + (reals * of_real + pairs * 3 * l1 * 2) * size[0]  # along rows, then along columns
    back = p * l2 * q + (reals * of_real + pairs * 3 * l1 * 2) * p
    products = reals * of_real + pairs * 3 * l1
    assert fourier.multiplications(kernel) == SPLIT * (there * c + back * k) + products * c * k


@pytest.mark.parametrize("kernel", [(3, 3, 2, 5), (5, 4, 3, 2), (1, 1, 1, 1)])
def test_the_cost_of_fourier_is_known_before_its_matrices_are_made(kernel):
    for pad in range(4):
        for size in np.ndindex(6, 7):
            size = size[0] + kernel[0], size[1] + kernel[1]
            made = filtering.fourier(size, kernel[:2], pad, np.dtype("f8")).multiplications(kernel)
            assert filtering.fourier_multiplications(size, kernel, pad) == made


KERNELS = [
    (3, 3, 1, 2),
    (3, 3, 3, 16),
    (3, 3, 12, 24),
    (5, 5, 3, 2),
    (5, 5, 16, 16),
    (8, 8, 1, 8),
    (8, 7, 24, 48),
    (1, 1, 4, 4),
]


@pytest.mark.parametrize(("n", "definition"), [(1, convolution.Unfolded), (8, Stacked)])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_convolution_is_computed_with_the_fewest_multiplications_each_methods_weighed(kernel, n, definition):
    for pad in range(4):
        for extent in range(max(1, kernel[0] - 2 * pad), 17):
            size = extent, extent + 1
            weight = {convolution.Unfolded: 1.5, Stacked: 0.65}[definition]
            costs = {definition(pad): weight * convolution.multiplications(size, kernel, pad)}
            if kernel[:2] == (3, 3):
                tiles = filtering.winograd(size, kernel[:2], pad, np.dtype("f8"))
                costs[tiles] = tiles.multiplications(kernel)
            whole = filtering.fourier(size, kernel[:2], pad, np.dtype("f8"))
            costs[whole] = convolution.ONE_TILE * whole.multiplications(kernel)
            chosen = convolution.choose(np.zeros((n, *size, kernel[2])), np.zeros(kernel), pad)
            assert alike(chosen, definition(pad) if pad >= min(kernel[:2]) else min(costs, key=costs.get))


@pytest.mark.parametrize("n", [1, 3, 7, 8])
@pytest.mark.parametrize("kernel", [(3, 3, 48, 96), (5, 5, 16, 32), (8, 8, 24, 48)], ids=str)
def test_to_evaluate_few_images_the_transforms_of_the_filters_count_too(kernel, n):
    choices, (r, s, c, k) = set(), kernel
    for extent in range(4, 33, 4):
        x, w, size, pad = np.zeros((n, extent, extent, c), np.float32), np.zeros(kernel), (extent, extent), 1
        trained, chosen = convolution.choose(x, w, pad), convolution.choose(x, w, pad, evaluating=True)
        if n == convolution.FEW:
            assert chosen is trained
            continue
        ways = [filtering.fourier(size, (r, s), pad, x.dtype)]
        ways += [filtering.winograd(size, (r, s), pad, x.dtype)] if r == 3 else []
        filters = {way: len(way.b) * (r * s + convolution.MOVED) * c * k + convolution.CALLS for way in ways}
        costs = {way: n * way.multiplications(kernel) + filters[way] for way in ways}
        costs[ways[0]] += (convolution.ONE_TILE - 1) * n * ways[0].multiplications(kernel)
        costs[convolution.Few(pad)] = n * 1.5 * convolution.multiplications(size, kernel, pad)
        assert alike(chosen, min(costs, key=costs.get))
        choices |= {type(trained), type(chosen)}
    assert n == convolution.FEW or choices - {convolution.Unfolded} == {convolution.Few, filtering.Filtered}


@pytest.mark.parametrize("above", [[layers.Maxout(2)], [layers.ReLU()], []], ids=["maxout", "ReLU", "nothing"])
def test_one_image_is_evaluated_by_another_method_than_it_is_trained_by_with_the_same_result(monkeypatch, above):
    rng, seen = np.random.default_rng(0), []

    def spy(x, w, pad, evaluating):
        seen.append(convolution.choose(x, w, pad, evaluating))
        return seen[-1]

    monkeypatch.setattr(layers, "choose", spy)
    conv = layers.Conv2d(rng.normal(size=(8, 8, 24, 48)), rng.normal(size=48), pad=3)
    net, x = Sequential([conv, *above]), rng.normal(size=(1, 10, 10, 24))
    np.testing.assert_allclose(net(x), net.forward(x)[0], rtol=1e-9, atol=1e-10)
    assert [type(method) for method in seen] == [convolution.Few, filtering.Filtered]


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(5, 5, 1), (3, 2, 1), (3, 3, 16), (1, 1, 7)], ids=str)
@pytest.mark.parametrize("small", [1, 3000, 10**6])
def test_few_images_are_evaluated_as_the_definition_says_whatever_is_small(monkeypatch, kernel, pieces, small):
    monkeypatch.setattr(convolution, "SMALL", small)
    convolution._groups.cache_clear()
    rng, pad = np.random.default_rng(0), 2
    x, w, b = rng.normal(size=(3, 6, 7, kernel[2])), rng.normal(size=(*kernel, 4 * pieces)), rng.normal(size=4 * pieces)
    for images in (x, x[:, ::-1].transpose(0, 2, 1, 3)):
        expected = Maxout(pieces)(convolution.Unfolded(pad).forward(images, w, b)[0])
        close(convolution.Few(pad).maxout(images, w, b, pieces), expected)
    convolution._groups.cache_clear()


@pytest.mark.parametrize(
    ("small", "groups"), [(10**6, 1), (3 * 7 * 82 * 5, 8), (6 * 7 * 82 * 5 - 1, 6), (24 * 7 * 82 * 5, 1)]
)
def test_few_images_take_products_of_a_group_of_rows_for_one_piece(monkeypatch, small, groups):
    seen = []

    class Rows(np.ndarray):
        def __matmul__(self, other):
            seen.append((self.shape, other.shape))
            return np.asarray(self) @ np.asarray(other)

    monkeypatch.setattr(convolution, "SMALL", small)
    monkeypatch.setattr(convolution.np, "empty", lambda *arguments: np.zeros(*arguments).view(Rows))
    convolution._groups.cache_clear()
    convolution.Few(1).maxout(np.zeros((3, 8, 7, 9)), np.zeros((3, 3, 9, 10)), np.zeros(10), 2)
    convolution._groups.cache_clear()
    assert seen == [((groups, 168 // groups, 82), (2, 1, 82, 5))]


@pytest.mark.parametrize(
    ("rows", "cost", "groups"), [(22, 50_688, 2), (22, 91_000, 11), (7, 10**6, 7), (6, 10**6 + 1, 0), (9, 1, 1)]
)
def test_the_groups_are_the_fewest_equal_ones_whose_products_are_small(rows, cost, groups):
    assert convolution._fewest_groups(rows, cost) == groups


def test_few_images_are_unfolded_whole_where_a_row_of_the_map_is_no_small_product(monkeypatch):
    monkeypatch.setattr(convolution.Unfolded, "maxout", lambda *arguments: "unfolded")
    few, b = convolution.Few(0), np.zeros(4000)
    assert few.maxout(np.zeros((1, 1, 1000, 1), np.float32), np.zeros((1, 1, 1, 4000), np.float32), b, 2) == "unfolded"
    assert isinstance(few.maxout(np.zeros((1, 1, 10, 1)), np.zeros((1, 1, 1, 4000)), b, 2), np.ndarray)


def test_a_filtering_is_made_once_for_any_number_of_images():
    w = np.zeros((3, 3, 48, 96), np.float32)
    made = [convolution.choose(np.zeros((n, 32, 32, 48), np.float32), w, 1, evaluating=True) for n in (6, 7, 9, 64)]
    assert isinstance(made[0], filtering.Filtered) and all(one is made[0] for one in made)


@pytest.mark.parametrize(
    ("n", "filters", "method"),
    [
        (7, 62_500, convolution.Unfolded),
        (8, 2, Stacked),
        (8, 62_500, Stacked),
        (8, 62_501, convolution.Unfolded),
    ],
)
def test_few_images_and_large_products_are_unfolded(n, filters, method):
    x, w = np.zeros((n, 2, 2, 2), np.float32), np.zeros((1, 1, 2, filters), np.float32)
    assert type(convolution.choose(x, w, 0)) is method


def test_filtering_is_planned_in_the_dtype_of_the_images():
    for kernel, pad in (((3, 3, 64, 128), 1), ((8, 7, 24, 48), 3)):
        method = convolution.choose(np.zeros((8, 12, 12, kernel[2]), np.float32), np.zeros(kernel, np.float32), pad)
        assert isinstance(method, filtering.Filtered)
        spectra = [getattr(part, "spectrum", part) for part in (method.a, method.b, method.g)]
        arrays = [a for part in spectra for a in vars(part).values() if isinstance(a, np.ndarray)]
        assert len(arrays) in (3, 9) and {a.dtype for a in arrays} == {np.dtype(np.float32)}


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@given(shapes, st.sampled_from([0.0, 0.5, 0.9]), SEEDS)
def test_sgd_and_rmsprop_are_the_references_over_several_steps(shape, momentum, seed):
    rng = np.random.default_rng(seed)
    start = np.trunc(2 * rng.normal(size=shape))  # biases start at 0
    gradients = [10.0 ** rng.integers(-8, 1) * rng.normal(size=shape) for _ in range(3)]
    for mine, theirs in (
        (optimizers.SGD(0.1, momentum), lambda w, g, s: reference_optimizers.sgd(w, g, s, 0.1, momentum)),
        (optimizers.SGD(0.1), lambda w, g, s: reference_optimizers.sgd(w, g, s, 0.1, 0.0)),
        (optimizers.RMSProp(0.005), lambda w, g, s: reference_optimizers.rmsprop(w, g, s, 0.005)),
        (optimizers.RMSProp(0.1, 0.5, 1e-2), lambda w, g, s: reference_optimizers.rmsprop(w, g, s, 0.1, 0.5, 1e-2)),
    ):
        w, theirs_w, state = start.copy(), start.copy(), np.zeros(shape)
        for g in gradients:
            mine.step("w", w, g)
            theirs_w, state = theirs(theirs_w, g, state)
            close(w, theirs_w)


@pytest.mark.parametrize("make", [optimizers.SGD, optimizers.RMSProp])
def test_an_update_is_a_step_at_the_rate_of_each_array_and_then_the_limit_of_its_norm(make):
    steps, g = {}, np.array([[1.0], [-2.0], [3.0]])
    for name, scale, limit in (("plain", 1.0, None), ("scaled", 0.25, None), ("limited", 1.0, 0.05)):
        steps[name] = w = np.zeros((3, 1))
        optimizers.update(make(0.5), [(name, w, scale, limit)], {name: g})
    assert steps["plain"].all()
    np.testing.assert_allclose(steps["scaled"], 0.25 * steps["plain"], rtol=1e-15)
    norm = np.sqrt((steps["plain"] ** 2).sum())
    assert norm > 0.1
    np.testing.assert_allclose(steps["limited"], steps["plain"] * 0.05 / norm, rtol=1e-15)


@pytest.mark.parametrize("make", [lambda: optimizers.SGD(0.1, 0.9), lambda: optimizers.RMSProp(0.1)])
def test_arrays_of_one_optimizer_have_states_of_their_own(make):
    together, g = make(), {"a": np.array([1.0, -2.0]), "b": np.array([3.0, 0.5])}
    both, alone = {name: np.zeros(2) for name in g}, {name: (make(), np.zeros(2)) for name in g}
    for _ in range(3):
        optimizers.update(together, [(name, w, 1.0, None) for name, w in both.items()], g)
        for name, (optimizer, w) in alone.items():
            optimizer.step(name, w, g[name])
    for name, (_, w) in alone.items():
        np.testing.assert_array_equal(both[name], w)


@pytest.mark.parametrize("make", [lambda: optimizers.SGD(0.1, 0.9), lambda: optimizers.RMSProp(0.1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_large_array_is_updated_in_parts_with_the_same_bits(monkeypatch, make, transposed):
    def steps():
        rng, optimizer = np.random.default_rng(0), make()
        w = rng.normal(size=(5, 7)).astype(np.float32)
        w = w.T if transposed else w
        for _ in range(3):
            optimizer.step("w", w, rng.normal(size=w.shape).astype(np.float32))
        return w.tobytes(), optimizer.state["w"].tobytes()

    whole, seen, parts = steps(), [], optimizers._parts
    monkeypatch.setattr(optimizers, "LARGE", 34)
    monkeypatch.setattr(optimizers, "PART", 8)
    monkeypatch.setattr(optimizers, "_parts", lambda *arrays: (seen.append(p[0].size) or p for p in parts(*arrays)))
    assert steps() == whole
    assert seen == ([35] if transposed else [8, 8, 8, 8, 3]) * 3


@given(shapes, st.sampled_from([0.0, 0.5, 0.7, 0.999]), st.integers(1, 6), SEEDS)
def test_the_mean_of_the_weights_is_the_references_in_place(shape, decay, updates, seed):
    rng, mean = np.random.default_rng(seed), {}
    weights = [{"a": rng.normal(size=shape), "b": rng.normal(size=3)} for _ in range(updates)]
    for n, after in enumerate(weights, start=1):
        before, copies = dict(mean), {name: w.copy() for name, w in after.items()}
        assert optimizers.average(mean, after, n, decay) is None
        assert all(mean[name] is array for name, array in before.items())
        assert all((after[name] == w).all() and mean[name] is not after[name] for name, w in copies.items())
        for name, expected in reference_optimizers.mean(weights[:n], decay).items():
            np.testing.assert_allclose(mean[name], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", [optimizers.SGD(0.1, 0.5), optimizers.RMSProp(0.1)], ids=["SGD", "RMSProp"])
def test_the_state_starts_at_0_whatever_the_weights_are(optimizer):
    optimizer.step("w", np.array([np.inf, -1.0], np.float32), np.zeros(2, np.float32))
    assert optimizer.state["w"].tobytes() == np.zeros(2, np.float32).tobytes()


@given(shapes, st.sampled_from([0.3, 0.9, 1.9365, 100.0]), SEEDS)
def test_max_norm_is_the_references_in_place(shape, limit, seed):
    w = np.random.default_rng(seed).normal(size=shape)
    w[..., 0] = 0  # a filter without a norm
    max_norm_is_the_references(optimizers.max_norm, w, limit)


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 3),
    st.sampled_from([(1, 1), (2, 3), (4, 5)]),
    st.sampled_from([2, 8]),
    SEEDS,
)
@example(3, 3, 1, (12, 24), 2, 0)  # by Winograd
@example(5, 5, 3, (4, 5), 2, 0)  # by Fourier
@example(3, 5, 3, (2, 3), 8, 0)  # of many images, with padding as wide as the kernel
def test_convolution_and_both_its_gradients_are_scipys_correlations(r, s, pad, channels, images, seed):
    (c, k), rng = channels, np.random.default_rng(seed)
    h, w_ = max(1, r - 2 * pad) + 3, max(1, s - 2 * pad) + 2
    x, w, b = rng.normal(size=(images, h, w_, c)), rng.normal(size=(r, s, c, k)), rng.normal(size=k)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    layer = Conv2d(w, b, pad)
    y, cache = layer.forward(x)
    dy = rng.normal(size=y.shape)
    dx, grads = layer.backward(dy, cache)
    for i in range(k):
        expected = [correlate(image, w[..., i], mode="valid", method="direct")[..., 0] + b[i] for image in padded]
        close(y[..., i], np.stack(expected))
        for j in range(c):
            dw = sum(correlate(padded[n, ..., j], dy[n, ..., i], mode="valid", method="direct") for n in range(images))
            close(grads["w"][:, :, j, i], dw)
    for n in range(images):
        for j in range(c):
            full = sum(convolve(dy[n, ..., i], w[:, :, j, i], mode="full", method="direct") for i in range(k))
            close(dx[n, ..., j], full[pad : pad + h, pad : pad + w_])
    close(grads["b"], dy.sum(axis=(0, 1, 2)))


@pytest.mark.parametrize("pad", [0, 1, 2, 4])
@pytest.mark.parametrize("size", [(7, 6), (6, 9), (3, 4)])
def test_a_convolution_in_blocks_is_the_convolution_at_once(size, pad, monkeypatch):
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(9, *size, 2)), rng.normal(size=(3, 3, 2, 6)), rng.normal(size=6)
    at = size, (3, 3), pad, np.float64
    for method in (Stacked(pad), filtering.winograd(*at), filtering.fourier(*at)):
        monkeypatch.undo()
        y, kept = method.forward(x, w, b)
        dy = rng.normal(size=y.shape)
        dx, dw = method.backward(dy, kept, w)
        for numbers, rows in ((1, 1), (500, 1), (1, 7), (1500, 20)):
            monkeypatch.setattr(stacked, "STACK", numbers)
            monkeypatch.setattr(filtering, "TRANSFORMED", numbers)
            monkeypatch.setattr(filtering, "ROWS", rows)
            monkeypatch.setattr(filtering, "BLOCK", numbers)
            monkeypatch.setattr(stacked, "SMALL", numbers)
            blocks, kept = method.forward(x, w, b)
            close(blocks, y)
            for pieces in (1, 2, 3, 6):
                together = method.maxout(x, w, b, pieces)
                close(together, y.reshape(*y.shape[:3], pieces, -1).max(axis=3))
            for found, expected in zip(method.backward(dy, kept, w), (dx, dw), strict=True):
                close(found, expected)
            close(method.weight_gradient(dy, kept, w), dw)


@pytest.mark.parametrize(
    ("start", "stop", "most", "ends"),
    [(0, 22, 20, [11, 22]), (3, 10, 3, [6, 9, 10]), (0, 3, 9, [3]), (2, 4, 1, [3, 4]), (3, 3, 5, []), (4, 3, 5, [])],
)
def test_a_range_is_cut_into_as_few_slices_of_nearly_equal_length(start, stop, most, ends):
    assert equal_slices(start, stop, most) == [slice(a, b) for a, b in zip([start, *ends], ends, strict=False)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [(1, 6), (12, 24), (3, 8)])
@pytest.mark.parametrize("images", [0, 1, 9])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_convolution_and_its_maxout_at_once_are_the_two_one_after_the_other(pieces, images, channels, dtype):
    (c, k), rng = channels, np.random.default_rng(0)
    x, w, b = rng.normal(size=(images, 9, 8, c)), rng.normal(size=(3, 3, c, k)), rng.normal(size=k)
    x, conv, maxout, pool = (
        x.astype(dtype),
        Conv2d(w.astype(dtype), b.astype(dtype), 1),
        Maxout(pieces),
        MaxPool2d(2, 2),
    )
    expected = pool(maxout(conv(x)))
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(Maxout, "__call__")  # which is not needed
        patch.delattr(Maxout, "forward")
        together = Sequential([conv, maxout, pool])(x)
    if not images or alike(*(convolution.choose(x, conv.params["w"], 1, evaluating) for evaluating in (False, True))):
        np.testing.assert_array_equal(together, expected)
    else:  # for one image, another method: the same numbers up to rounding
        close(together, expected, rtol=2000 * np.finfo(dtype).eps)
    assert together.dtype == dtype


def test_a_convolution_before_a_maxout_refuses_what_the_two_refuse():
    layers = [Conv2d(np.ones((3, 3, 2, 4)), np.ones(4)), Maxout(3)]
    for call in (Sequential(layers), Sequential(layers).forward):
        with pytest.raises(ValueError, match=r"Maxout: input \(1, 7, 6, 4\) does not divide into 3 pieces"):
            call(np.ones((1, 9, 8, 2)))
        with pytest.raises(ValueError, match=r"Conv2d: input \(1, 9, 8, 5\)"):
            call(np.ones((1, 9, 8, 5)))


class NegativeConv(Conv2d):
    def forward(self, x, rng=None):
        y, cache = super().forward(x, rng)
        return -y, cache


class NegativeMaxout(Maxout):
    def forward(self, x, rng=None):
        y, cache = super().forward(x, rng)
        return -y, cache

    def __call__(self, x, rng=None):
        return self.forward(x, rng)[0]


@pytest.mark.parametrize("kinds", [(NegativeConv, Maxout), (Conv2d, NegativeMaxout)])
def test_a_users_own_convolution_or_maxout_is_asked_itself(kinds):
    rng = np.random.default_rng(0)
    layers = Sequential([kinds[0](rng.normal(size=(3, 3, 1, 4)), np.zeros(4)), kinds[1](2)])
    x = rng.normal(size=(9, 5, 5, 1))
    np.testing.assert_array_equal(layers(x), layers.forward(x)[0])


@pytest.mark.parametrize("make", [filtering.winograd, filtering.fourier])
def test_single_precision_is_kept_on_the_way(make, monkeypatch):
    found, of = [], filtering.Filtered

    def seen(function):
        def call(*arguments):
            result = function(*arguments)
            found.extend(a.dtype for a in (*arguments, result) if isinstance(a, np.ndarray))
            return result

        return call

    monkeypatch.setattr(transforms, "_product", seen(transforms._product))
    monkeypatch.setattr(of, "_filters", seen(of._filters))
    rng, method = np.random.default_rng(0), make((7, 6), (3, 3), 1, np.float32)
    x, w, b, dy = (rng.random(shape, np.float32) for shape in ((9, 7, 6, 2), (3, 3, 2, 5), 5, (9, 7, 6, 5)))
    _, kept = method.forward(x, w, b)
    method.backward(dy, kept, w)
    found.append(method.maxout(x, w, b, 5).dtype)
    assert set(found) == {np.dtype(np.float32)}


def test_a_block_of_images_holds_what_it_may_or_else_enough_rows_of_a_product(monkeypatch):
    method = filtering.winograd((4, 16), (3, 3), 1, np.float64)  # 4 tiles of 36 products
    monkeypatch.setattr(filtering, "ROWS", 9)
    for numbers, some in ((36 * 4 * 5 * 6, 6), (36 * 4 * 5 * 6 - 1, 5), (36 * 4 * 5, 3), (1, 3)):
        monkeypatch.setattr(filtering, "TRANSFORMED", numbers)
        assert [images.indices(8)[:2] for images in method._blocks(8, 5)] == [
            (first, min(first + some, 8)) for first in range(0, 8, some)
        ]


@pytest.mark.parametrize("pad", [0, 1, 2, 3])
@pytest.mark.parametrize("images", [2, 8])
@pytest.mark.parametrize(("size", "channels"), [(3, (12, 24)), (5, (4, 5)), (8, (3, 4)), (2, (2, 3))])
def test_convolution_of_every_size_of_map_is_its_definition_by_unfold_and_fold(size, channels, images, pad):
    (c, k), rng = channels, np.random.default_rng(pad)
    w, b = rng.normal(size=(size, size, c, k)), rng.normal(size=k)
    layer, least = Conv2d(w, b, pad), max(1, size - 2 * pad)
    for height in range(least, least + 9):
        for width in range(least, least + 9):
            x = rng.normal(size=(images, height, width, c))
            y, cache = layer.forward(x)
            patches = unfold(x, size, size, pad)
            close(y, np.einsum("npqrsc,rsck->npqk", patches, w) + b)
            dy = rng.normal(size=y.shape)
            dx, grads = layer.backward(dy, cache)
            close(dx, fold(np.einsum("npqk,rsck->npqrsc", dy, w), x.shape, pad))
            close(grads["w"], np.einsum("npqrsc,npqk->rsck", patches, dy, optimize=True))
            close(grads["b"], dy.sum(axis=(0, 1, 2)))


@given(st.integers(1, 5), st.integers(1, 6), SEEDS)
def test_log_softmax_is_scipys(n, k, seed):
    logits = 10 * np.random.default_rng(seed).normal(size=(n, k))
    close(losses.log_softmax(logits), scipys_log_softmax(logits, axis=1))


@pytest.mark.parametrize("tau", [0.5, 3.0, 20.0])
def test_the_slopes_of_softmax_and_eq_2_are_what_scipy_differentiates_them_to(tau):
    rng = np.random.default_rng(7)
    logits, teacher, labels, v = (
        rng.normal(size=(3, 4)),
        rng.normal(size=(3, 4)),
        np.array([0, 3, 1]),
        rng.normal(size=(3, 4)),
    )
    dy = rng.normal(size=(3, 4))

    def along(f):
        return derivative(np.vectorize(lambda t: f(logits + t * v)), 0.0, tolerances={"rtol": 1e-11}).df

    _, dlogits = losses.distillation_loss(logits, teacher, labels, tau, 2.5)
    close((dlogits * v).sum(), along(lambda a: losses.distillation_loss(a, teacher, labels, tau, 2.5)[0]), rtol=1e-9)
    layer = Softmax(tau)
    dx, _ = layer.backward(dy, layer.forward(logits)[1])
    close((dx * v).sum(), along(lambda a: (dy * layer(a)).sum()), rtol=1e-9)


@pytest.mark.parametrize("n", [1, 9])
def test_numbers_in_another_byte_order_become_this_machines(n):
    rng, other = np.random.default_rng(0), np.dtype(np.float32).newbyteorder()
    w, b, x = (rng.normal(size=shape).astype(other) for shape in ((3, 3, 2, 4), 4, (n, 5, 5, 2)))
    layer, native = Conv2d(w, b), Conv2d(w.astype(np.float32), b.astype(np.float32))
    for y in (layer.forward(x)[0], layer.maxout(x, 2), layer(x)):
        assert y.dtype == np.float32 and y.dtype.isnative
    close(layer.maxout(x, 2), native.maxout(x.astype(np.float32), 2), rtol=1e-6)
