"""The reference against witnesses that are not ours: SciPy, arithmetic by hand, derivatives that are known."""

import math

import numpy as np
import pytest
from scipy.signal import correlate
from scipy.special import log_softmax, softmax

from reference import losses, ops, optimizers, paper, train

EXTREME = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, math.log(2.0), -1e4]])


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def column(values):
    """One image of one channel, (1, len, 1, 1), so that pooling can be read off a line of numbers."""
    return np.array(values, dtype=float).reshape(1, -1, 1, 1)


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_convolution_is_scipys_correlation_summed_over_channels(pad):
    x, w, b = draw(0, 2, 5, 6, 3), draw(1, 3, 2, 3, 4), draw(2, 4)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = ops.conv2d(x, w, b, pad)
    assert y.shape == (2, 5 + 2 * pad - 2, 6 + 2 * pad - 1, 4)
    for n in range(2):
        for k in range(4):
            expected = correlate(padded[n], w[..., k], mode="valid", method="direct")[..., 0] + b[k]
            np.testing.assert_allclose(y[n, :, :, k], expected, rtol=1e-13, atol=1e-13)


def test_maxout_is_piece_major_on_any_leading_axes():
    z = np.array([1.0, 8.0, 3.0, 4.0, 5.0, 6.0])  # pieces (1, 8), (3, 4), (5, 6) of two units
    np.testing.assert_array_equal(ops.maxout(z, 3), [5, 8])
    np.testing.assert_array_equal(ops.maxout(z, 2), [4, 8, 6])
    np.testing.assert_array_equal(ops.maxout(z, 1), z)
    np.testing.assert_array_equal(ops.maxout(np.stack([[z, -z]]), 3), [[[5, 8], [-1, -4]]])
    with pytest.raises(ValueError, match="maxout"):
        ops.maxout(z, 4)


@pytest.mark.parametrize(
    ("length", "size", "stride", "pooled"),
    [
        *[(21, 4, 2, 10), (9, 4, 2, 4), (6, 2, 2, 3), (33, 4, 2, 16), (15, 4, 2, 7), (9, 2, 2, 5), (36, 3, 2, 18)],
        *[(20, 3, 2, 10), (12, 3, 2, 6), (7, 2, 2, 4), (8, 8, 8, 1), (3, 5, 2, 1), (1, 1, 1, 1)],
        *[(5, 1, 3, 2), (7, 2, 5, 2)],  # stride > size: a window must not start outside
    ],
)
def test_pooling_has_the_ceil_mode_sizes(length, size, stride, pooled):
    assert ops.maxpool2d(np.zeros((1, length, 6, 1)), size, stride).shape[1] == pooled
    assert ops.maxpool2d(np.zeros((1, 6, length, 1)), size, stride).shape[2] == pooled


def test_pooling_takes_the_largest_of_each_window_and_clips_the_last():
    np.testing.assert_array_equal(ops.maxpool2d(column([3, 1, 4, 1, 5]), 2, 2).ravel(), [3, 4, 5])
    np.testing.assert_array_equal(ops.maxpool2d(column([3, 1, 4, 1, 5]), 3, 2).ravel(), [4, 5])
    np.testing.assert_array_equal(ops.maxpool2d(column([-3, -1, -4]), 2, 2).ravel(), [-1, -4])
    np.testing.assert_array_equal(ops.maxpool2d(column([9, 1, 2, 8]), 1, 3).ravel(), [9, 8])
    np.testing.assert_array_equal(ops.maxpool2d(column([2, 7, 1]), 5, 2).ravel(), [7])


def test_pooling_is_a_full_window_over_a_map_padded_with_minus_infinity():
    x = draw(3, 2, 7, 9, 3)
    padded = np.pad(x, ((0, 0), (0, 4), (0, 4), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), axis=(1, 2)).max(axis=(-2, -1))
    np.testing.assert_array_equal(ops.maxpool2d(x, 4, 2), windows[:, ::2, ::2][:, :3, :4])


def test_linear_relu_flatten_and_reshape_agree_with_numpy():
    x, w, b = draw(4, 3, 5), draw(5, 5, 2), draw(6, 2)
    np.testing.assert_allclose(ops.linear(x, w, b), x @ w + b, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(ops.relu([[-2.0, 0.0, 3.0]]), [[0, 0, 3]])
    maps = draw(7, 2, 3, 4, 5)
    np.testing.assert_array_equal(ops.flatten(maps), maps.reshape(2, 60))
    np.testing.assert_array_equal(ops.reshape(maps, (6, 10)), maps.reshape(2, 6, 10))


@pytest.mark.parametrize("tau", [1.0, 3.0, 0.5])
def test_softmax_is_scipys_also_for_extreme_logits(tau):
    for x in (draw(8, 2, 3, 5), EXTREME):
        np.testing.assert_allclose(ops.softmax(x, tau), softmax(x / tau, axis=-1), rtol=1e-14)
    np.testing.assert_array_equal(ops.softmax(EXTREME[0]), [1, 0, 0])
    np.testing.assert_allclose(ops.softmax(EXTREME[2]), [1 / 3, 2 / 3, 0], rtol=1e-15)


def test_dropout_keeps_what_the_mask_keeps():
    x, mask = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(ops.dropout(x, mask, 0.5), [[2, 0], [0, 8]])
    np.testing.assert_array_equal(ops.dropout(x, mask, 0.8, rescale=False), [[1, 0], [0, 4]])


def test_a_convolutional_regressor_of_one_pixel_mixes_channels_and_then_takes_the_best_piece():
    v, w, b = draw(9, 2, 3, 4, 5), draw(10, 1, 1, 5, 6), draw(11, 6)
    z = np.einsum("nhwc,ck->nhwk", v, w[0, 0]) + b
    np.testing.assert_allclose(ops.conv_regressor(v, w, b, 2), np.maximum(z[..., :3], z[..., 3:]), rtol=1e-13)
    np.testing.assert_allclose(ops.conv_regressor(v, w, b, None), np.maximum(z, 0), rtol=1e-13)


def test_a_fully_connected_regressor_has_the_shape_of_the_hint_even_a_larger_one():
    v, w, b = draw(12, 2, 2, 3, 2), draw(13, 12, 2 * 30), draw(14, 2 * 30)
    z = v.reshape(2, 12) @ w + b
    expected = np.maximum(z[:, :30], z[:, 30:]).reshape(2, 3, 5, 2)
    np.testing.assert_allclose(ops.fc_regressor(v, w, b, 2, (3, 5, 2)), expected, rtol=1e-13)
    np.testing.assert_allclose(ops.fc_regressor(v, w, b, None, (60,)), np.maximum(z, 0), rtol=1e-13)


def test_float32_inputs_are_computed_in_float64():
    x, w, b = (draw(seed, *shape).astype(np.float32) for seed, shape in enumerate([(2, 50), (50, 3), (3,)]))
    y = ops.linear(x, w, b)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, ops.linear(*(array.astype(np.float64) for array in (x, w, b))))


def test_cross_entropy_is_scipys_mean_over_the_batch():
    logits, labels = draw(15, 4, 5), np.array([0, 4, 2, 2])
    expected = -log_softmax(logits, axis=1)[np.arange(4), labels].mean()
    assert math.isclose(losses.cross_entropy(logits, labels), expected, rel_tol=1e-14)


@pytest.mark.parametrize(("tau", "lam"), [(3.0, 4.0), (1.0, 1.0), (2.0, 0.0)])
def test_distillation_adds_lambda_times_the_soft_term_without_tau_squared(tau, lam):
    logits, teacher, labels = draw(16, 4, 5), draw(17, 4, 5), np.array([1, 0, 3, 4])
    hard = -log_softmax(logits, axis=1)[np.arange(4), labels]
    soft = -(softmax(teacher / tau, axis=1) * log_softmax(logits / tau, axis=1)).sum(axis=1)
    loss = losses.distillation_loss(logits, teacher, labels, tau, lam)
    assert math.isclose(loss, (hard + lam * soft).mean(), rel_tol=1e-14)


def test_losses_are_exact_for_extreme_logits():
    assert losses.cross_entropy(EXTREME[:1], [0]) == 0
    assert losses.cross_entropy(EXTREME[:1], [1]) == 20_000
    assert math.isclose(losses.cross_entropy(EXTREME[1:2], [2]), math.log(3), rel_tol=1e-15)
    assert losses.cross_entropy(EXTREME[:2], [2, 0]) == (10_000 + math.log(3)) / 2
    mirrored = EXTREME[:1, ::-1].copy()  # the teacher is sure of class 2, the student of class 0
    assert losses.distillation_loss(EXTREME[:1], mirrored, [0], 2.0, 3.0) == 15_000


def test_the_hint_loss_is_half_the_squared_norm_a_batch_mean_of_feature_sums():
    guided, hint = np.zeros((2, 2, 1, 2)), np.array([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 2.0]).reshape(2, 2, 1, 2)
    assert losses.hint_loss(guided, hint) == 0.5 * (1 + 4 + 9 + 16 + 4) / 2


def test_losses_refuse_what_would_otherwise_broadcast_or_wrap():
    with pytest.raises(ValueError, match="hint_loss"):
        losses.hint_loss(np.zeros((2, 3)), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="distillation_loss"):
        losses.distillation_loss(np.zeros((2, 3)), np.zeros((1, 3)), [0, 0], 3.0, 1.0)
    for labels in ([0, -1], [0, 3], [0]):
        with pytest.raises(ValueError, match="cross_entropy"):
            losses.cross_entropy(np.zeros((2, 3)), labels)


def test_sgd_accumulates_velocity():
    w, velocity = np.array([1.0, -2.0]), np.zeros(2)
    w, velocity = optimizers.sgd(w, np.array([4.0, 8.0]), velocity, lr=0.25, momentum=0.5)
    np.testing.assert_array_equal(w, [0, -4])
    w, velocity = optimizers.sgd(w, np.array([0.0, 4.0]), velocity, lr=0.25, momentum=0.5)
    np.testing.assert_array_equal(velocity, [-0.5, -2])
    np.testing.assert_array_equal(w, [-0.5, -6])


def test_rmsprop_has_no_bias_correction_and_a_floor_under_the_root():
    w, m = optimizers.rmsprop(np.array([1.0, 1.0]), np.array([3.0, 1e-6]), np.zeros(2), lr=0.1, decay=0.75)
    np.testing.assert_allclose(m, [2.25, 0.25e-12], rtol=1e-15)
    np.testing.assert_allclose(w, [1 - 0.1 * 3 / 1.5, 1 - 0.1 * 1e-6 / 1e-5], rtol=1e-15)
    w, m = optimizers.rmsprop(w, np.array([0.0, 1.0]), m, lr=0.1, decay=0.75)
    np.testing.assert_allclose(m, [0.75 * 2.25, 0.25], rtol=1e-12)
    np.testing.assert_allclose(w, [0.8, 0.99 - 0.2], rtol=1e-12)


def test_max_norm_scales_only_the_filters_beyond_the_limit():
    w = np.array([[3.0, 0.3, 0.0], [4.0, 0.4, 0.0]])
    np.testing.assert_allclose(optimizers.max_norm(w, 2.5), [[1.5, 0.3, 0], [2, 0.4, 0]], rtol=1e-15)
    filters = draw(18, 2, 3, 2, 5)
    norms = np.sqrt((optimizers.max_norm(filters, 3.0) ** 2).sum(axis=(0, 1, 2)))
    np.testing.assert_allclose(norms, np.minimum(3.0, np.sqrt((filters**2).sum(axis=(0, 1, 2)))), rtol=1e-14)


def test_optimisers_leave_their_inputs_alone():
    arrays = [draw(seed, 3, 2) for seed in range(3)]
    for array in arrays:
        array.flags.writeable = False
    optimizers.sgd(*arrays, lr=0.1, momentum=0.9)
    optimizers.rmsprop(arrays[0], arrays[1], arrays[2] ** 2, lr=0.1)
    optimizers.max_norm(arrays[0], 0.1)


def test_the_gradient_of_a_known_function_is_its_derivative():
    a, b = draw(19, 2, 3), draw(20, 4)
    da, db = train.gradient(lambda arrays: np.sum(np.sin(arrays[0])) * np.sum(arrays[1] ** 3), [a, b], h=1e-3)
    np.testing.assert_allclose(da, np.cos(a) * np.sum(b**3), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(db, 3 * b**2 * np.sum(np.sin(a)), rtol=1e-10, atol=1e-10)


def test_the_gradient_of_a_quartic_is_exact_up_to_rounding_at_any_step():
    (slope,) = train.gradient(lambda arrays: float(arrays[0]) ** 4, [np.array(2.0)], h=0.5)
    np.testing.assert_allclose(slope, 32, rtol=1e-14)


def test_the_gradient_of_a_loss_that_does_not_move_is_exactly_zero():
    (slope,) = train.gradient(lambda arrays: 1e3 / 7 + np.maximum(arrays[0], 1).sum(), [-(draw(21, 4) ** 2)])
    np.testing.assert_array_equal(slope, np.zeros(4))


def test_weights_and_with_weights_are_inverse_and_leave_masks_alone():
    mask = np.ones((1, 2), dtype=bool)
    network = [[(ops.linear, draw(0, 3, 4), draw(1, 4)), (ops.maxout, 2)], (ops.dropout, mask, 0.5)]
    network += [(ops.fc_regressor, draw(2, 2, 6), draw(3, 6), None, (1, 2, 3))]
    arrays = train.weights(network)
    assert [array.shape for array in arrays] == [(3, 4), (4,), (2, 6), (6,)]
    other = train.with_weights(network, [array + 1 for array in arrays])
    assert other[0][1] == (ops.maxout, 2)
    assert other[1][1] is mask
    assert other[2][4] == (1, 2, 3)
    for before, after in zip(arrays, train.weights(other), strict=True):
        np.testing.assert_array_equal(after, before + 1)


def tiny_student():
    return [
        [(ops.conv2d, 0.5 * draw(30, 3, 3, 2, 4), draw(31, 4), 1), (ops.maxout, 2), (ops.maxpool2d, 2, 2)],
        [(ops.flatten,), (ops.linear, 0.3 * draw(32, 18, 3), draw(33, 3))],
    ]


def tiny_teacher():
    return [
        [(ops.conv2d, draw(34, 2, 2, 2, 6), draw(35, 6), 0), (ops.maxout, 2), (ops.maxpool2d, 4, 3)],
        [(ops.flatten,), (ops.linear, draw(36, 12, 3), draw(37, 3))],
    ]


def tiny_regressor():
    return [(ops.conv_regressor, 0.3 * draw(38, 2, 2, 2, 6), draw(39, 6), 2)]


def sgd(w, g, velocity):
    return optimizers.sgd(w, g, velocity, lr=0.001, momentum=0.9)


def contents(network):
    return [array.tobytes() for array in train.weights(network)]


def test_hint_steps_lower_the_hint_loss_and_touch_neither_the_teacher_nor_the_layers_above():
    student, regressor, teacher, x = tiny_student(), tiny_regressor(), tiny_teacher(), draw(40, 2, 6, 6, 2)
    teacher_before, student_before, regressor_before = contents(teacher), contents(student), contents(regressor)
    state, seen, old = train.initial_state(student[:1], regressor), [], student
    for _ in range(2):
        student, regressor, state, loss = train.hint_step(student, regressor, teacher, x, 1, 1, state, sgd)
        seen.append(loss)
    hint = train.forward(teacher[:1], x)
    assert hint.shape == (2, 2, 2, 3)
    seen.append(losses.hint_loss(train.forward(student[:1] + regressor, x), hint))
    assert seen[0] > seen[1] > seen[2]
    assert contents(teacher) == teacher_before
    assert contents(old) == student_before
    assert contents(student[1:]) == student_before[2:]
    assert not set(contents(student[:1])) & set(student_before)
    assert not set(contents(regressor)) & set(regressor_before)


def test_distillation_steps_lower_the_loss_and_do_not_touch_the_teacher():
    student, teacher, x, labels = tiny_student(), tiny_teacher(), draw(41, 2, 6, 6, 2), np.array([0, 2])
    before, first, state, seen = contents(teacher), contents(student), train.initial_state(student), []
    for _ in range(2):
        student, state, loss = train.distillation_step(student, teacher, x, labels, 3.0, 4.0, state, sgd)
        seen.append(loss)
    seen.append(losses.distillation_loss(train.forward(student, x), train.forward(teacher, x), labels, 3.0, 4.0))
    assert seen[0] > seen[1] > seen[2]
    assert contents(teacher) == before
    assert not set(contents(student)) & set(first)


def test_a_labels_step_on_a_linear_network_is_softmax_regression_by_hand():
    x, labels, w, b = draw(42, 4, 3), np.array([0, 1, 1, 0]), draw(43, 3, 2), draw(44, 2)
    network = [(ops.linear, w, b)]
    error = (softmax(x @ w + b, axis=1) - np.eye(2)[labels]) / 4
    (trained,), _, loss = train.labels_step(network, x, labels, train.initial_state(network), sgd)
    np.testing.assert_allclose(trained[1], w - 0.001 * x.T @ error, rtol=1e-12)
    np.testing.assert_allclose(trained[2], b - 0.001 * error.sum(axis=0), rtol=1e-12)
    assert math.isclose(loss, losses.cross_entropy(x @ w + b, labels), rel_tol=1e-14)


def test_a_hint_step_on_linear_networks_is_least_squares_by_hand():
    x, v, r, t = draw(45, 5, 3), draw(46, 3, 2), draw(47, 2, 4), draw(48, 3, 4)
    student, regressor, teacher = ([(ops.linear, w, np.zeros(w.shape[1]))] for w in (v, r, t))
    error = (x @ v @ r - x @ t) / 5
    state = train.initial_state(student, regressor)
    (guided,), (trained,), _, _ = train.hint_step(student, regressor, teacher, x, 1, 1, state, sgd)
    np.testing.assert_allclose(guided[1], v - 0.001 * x.T @ error @ r.T, rtol=1e-11)
    np.testing.assert_allclose(trained[1], r - 0.001 * (x @ v).T @ error, rtol=1e-11)


def counted(network, pieces=None):
    """Weights and multiplications of one of the paper's networks; every maxout layer with `pieces`, if given."""
    height, _, channels = network.input
    weights = multiplications = 0
    for layer in network.layers:
        m = layer.pieces if pieces is None else min(layer.pieces, pieces)
        if isinstance(layer, paper.Conv):
            height += 2 * layer.pad - layer.kernel + 1
            filters = layer.kernel**2 * channels * layer.channels * m
            area, channels = height**2, layer.channels
            if layer.pool:
                height = ops.maxpool2d(np.zeros((1, height, height, 1)), *layer.pool).shape[1]
        else:
            filters, area = height**2 * channels * layer.units * m, 1
            height, channels = 1, layer.units
        weights += filters
        multiplications += filters * area
    return weights, multiplications


def in_words(published):
    scale = {"K": 1e3, "M": 1e6}[published[-1]]
    digits = len(published.partition(".")[2]) - 1 if "." in published else 0
    return scale, float(published[:-1]), digits


@pytest.mark.parametrize("name", paper.COUNTS)
def test_the_computed_counts_follow_from_the_layers(name):
    count, network = paper.COUNTS[name], paper.NETWORKS[name]
    assert counted(network, pieces=2) == (count.weights, count.multiplications)
    assert counted(network) == (count.stated_weights, count.stated_multiplications)


# the 2.5M printed for CIFAR-100 repeats CIFAR-10's: ten times the classes make it 2.59M; and Table 6 has budgets
DIFFERENT = ("FitNet 3", "FitNet 4, 100 classes", *(f"{budget}, {layers} layers" for budget, layers in paper.TABLE_6))


@pytest.mark.parametrize("name", [name for name in paper.COUNTS if name not in DIFFERENT])
def test_two_pieces_everywhere_round_to_the_published_counts(name):
    count = paper.COUNTS[name]
    for published, computed in [
        (count.published_weights, count.weights),
        (count.published_multiplications, count.multiplications),
    ]:
        if published:
            scale, value, digits = in_words(published)
            assert round(computed / scale, digits) == value


def test_fitnet_3_as_printed_is_the_one_count_that_does_not_come_out():
    count = paper.COUNTS["FitNet 3"]
    assert (count.published_weights, count.published_multiplications) == ("1.6M", "392M")
    assert round(count.weights / 1e6, 1) == 1.5
    assert round(count.multiplications / 1e6) == 324


def test_the_mnist_fitnets_30k_is_the_sum_of_its_layers():
    assert sum([800, 4608, 12800, 4608, 3456, 2592, 1080]) == paper.COUNTS["MNIST FitNet"].weights == 29_944


@pytest.mark.parametrize("key", paper.DEPTH_COUNTS)
def test_the_depth_series_has_its_layers_its_budget_and_its_counts(key):
    budget, layers = key
    network = paper.DEPTH_SERIES[key]
    assert len(network.layers) == layers
    assert counted(network, pieces=2) == paper.DEPTH_COUNTS[key]
    assert paper.DEPTH_COUNTS[key][1] == pytest.approx(in_words(budget)[1] * 1e6, rel=0.1)


@pytest.mark.parametrize("name", paper.HINTS)
def test_each_regressor_takes_the_guided_map_to_the_hint_map(name):
    hint = paper.HINTS[name]
    (height, _, channels), (hint_height, _, hint_channels) = hint.guided_map, hint.hint_map
    assert hint.kernel == height - hint_height + 1
    assert hint.weights == hint.kernel**2 * channels * hint_channels
    student, teacher = paper.NETWORKS[name], paper.NETWORKS[teacher_of(name)]
    assert student.layers[hint.guided - 1].channels == channels
    assert teacher.layers[hint.hint - 1].channels == hint_channels
    assert side(student, hint.guided) == height
    assert side(teacher, hint.hint) == hint_height


def teacher_of(student):
    return "CIFAR-10 teacher" if student.startswith("FitNet") else f"{student.split()[0]} teacher"


def side(network, layers):
    height = network.input[0]
    for layer in network.layers[:layers]:
        height += 2 * layer.pad - layer.kernel + 1
        if layer.pool:
            height = ops.maxpool2d(np.zeros((1, height, height, 1)), *layer.pool).shape[1]
    return height


@pytest.mark.parametrize("key", paper.DEPTH_SERIES)
def test_the_depth_series_guides_from_a_map_of_eight_by_eight(key):
    assert side(paper.DEPTH_SERIES[key], paper.DEPTH_GUIDED[key[1]]) == 8


@pytest.mark.parametrize("name", paper.TABLE_5)
def test_table_5_agrees_with_the_networks_and_with_itself(name):
    row, count = paper.TABLE_5[name], paper.COUNTS[name]
    assert row.layers == len(paper.NETWORKS[name].layers)
    assert (row.weights, row.multiplications) == (count.published_weights, count.published_multiplications)
    scale, value, _ = in_words(row.weights)
    assert row.compression == pytest.approx(9e6 / (scale * value), abs=0.01)


def test_the_tables_agree_where_they_overlap():
    assert paper.TABLE_5["FitNet 4"].accuracy == paper.TABLE_1["fitnet"]
    assert paper.TABLE_5_TEACHER["accuracy"] == paper.TABLE_1["teacher"]
    assert paper.TABLE_4 == {"teacher": 0.55, "backprop": 1.9, "kd": 0.65, "fitnet": 0.51}
    assert set(paper.NETWORKS) == set(paper.COUNTS)


def test_every_setting_and_every_disagreement_is_complete():
    assert len(paper.DISAGREEMENTS) == 14
    assert all(all(vars(row).values()) for row in paper.DISAGREEMENTS)
    assert len({row.point for row in paper.DISAGREEMENTS}) == 14
    tags = ("paper", "released code", "pylearn2", "ours")
    assert all(s.source.startswith(tags) for group in paper.TRAINING.values() for s in group.values())
