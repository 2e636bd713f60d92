"""Networks from a SPEC, the pair of layers that is chosen for them, and how experiments fit the user's data."""

from dataclasses import fields, replace

import numpy as np
import pytest

from minifit import UserError, networks, spec
from minifit.data import Dataset
from minifit.experiments import EXPERIMENTS, OWN, OWN_STUDENT, OWN_TEACHER, fitted, of_own, sized
from minifit.networks import Conv, FullyConnected, Network, Output

# SPEC: (images, classes, the blocks)
GRAMMAR = {
    "16": ((8, 8, 3), 4, (Conv(16, 3, pad=1, pool=(8, 8)), Output(4))),
    "16-24": ((8, 8, 3), 10, (Conv(16, 3, pad=1, pool=(2, 2)), Conv(24, 3, pad=1, pool=(8, 8)), Output(10))),
    "16/24": ((8, 8, 3), 10, (Conv(16, 3, pad=1, pool=(2, 2)), Conv(24, 3, pad=1, pool=(8, 8)), Output(10))),
    "16-24/8": (
        (9, 12, 1),
        2,
        (Conv(16, 3, pad=1), Conv(24, 3, pad=1, pool=(2, 2)), Conv(8, 3, pad=1, pool=(12, 12)), Output(2)),
    ),
    "16/24-8": (
        (12, 9, 1),
        2,
        (Conv(16, 3, pad=1, pool=(2, 2)), Conv(24, 3, pad=1), Conv(8, 3, pad=1, pool=(12, 12)), Output(2)),
    ),
    "5x1-6x5-7x11": (
        (8, 8, 3),
        3,
        (
            Conv(5, 1, pool=(2, 2)),
            Conv(6, 5, pad=2, pool=(2, 2)),
            Conv(7, 11, pad=5, pool=(8, 8)),
            Output(3),
        ),
    ),
    "99999x99": ((4, 4, 1), 3, (Conv(99999, 99, pad=49, pool=(4, 4)), Output(3))),
    "4+20": ((8, 8, 3), 3, (Conv(4, 3, pad=1, pool=(8, 8)), FullyConnected(20, pieces=5), Output(3))),
    "1-2-3/4-5x7/6+7": (
        (16, 16, 4),
        26,
        (
            Conv(1, 3, pad=1),
            Conv(2, 3, pad=1),
            Conv(3, 3, pad=1, pool=(2, 2)),
            Conv(4, 3, pad=1),
            Conv(5, 7, pad=3, pool=(2, 2)),
            Conv(6, 3, pad=1, pool=(16, 16)),
            FullyConnected(7, pieces=5),
            Output(26),
        ),
    ),
}


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("text", GRAMMAR)
def test_each_part_of_a_spec_gives_its_blocks(text, role):
    image, classes, blocks = GRAMMAR[text]
    assert spec.network(role, text, image, classes) == Network(f"{role} {text}", image, blocks, microbatch=32)


def test_maps_weights_and_multiplications_of_a_spec_are_those_computed_by_hand():
    """Two pieces of a convolution have twice its filters; five of the units have five times theirs."""
    network = spec.network("student", "4-6x5/8+10", np.array((8, 12, 3)), 7)
    assert spec.shapes(network) == [(8, 12, 4), (4, 6, 6), (1, 1, 8)]
    layers = networks.build(network)
    counted = networks.count(layers, np.zeros((0, 8, 12, 3), np.float32))
    weights = 3 * 3 * 3 * 2 * 4, 5 * 5 * 4 * 2 * 6, 3 * 3 * 6 * 2 * 8, 8 * 5 * 10, 10 * 7
    places = 8 * 12, 8 * 12, 4 * 6, 1, 1  # before pooling
    assert counted == [(w, w * n) for w, n in zip(weights, places, strict=True)]
    biases = [value.size for name, value in layers.params.items() if name.endswith("b")]
    assert biases == [2 * 4, 2 * 6, 2 * 8, 5 * 10, 7]
    assert layers(np.ones((2, 8, 12, 3), np.float32)).shape == (2, 7)


def test_a_pooling_of_odd_maps_keeps_what_is_left_over_and_the_last_takes_the_whole_map():
    network = spec.network("teacher", "2-2-2-2", (7, 10, 1), 2)
    assert spec.shapes(network) == [(4, 5, 2), (2, 3, 2), (1, 2, 2), (1, 1, 2)]


def test_a_spec_like_fitnet_1_is_fitnet_1():
    made = spec.network("student", f"{OWN_STUDENT}+500", (32, 32, 3), 10)
    image = np.zeros((0, 32, 32, 3), np.float32)
    counts = [networks.count(networks.build(network), image) for network in (made, networks.FITNET_1)]
    assert counts[0] == counts[1]


WRONG = {
    "": "found nothing between two signs; wanted CHANNELS or CHANNELSxKERNEL for each layer",
    "16--16": "found nothing between two signs",
    "16/": "found nothing between two signs",
    "/16": "found nothing between two signs",
    "+5": "found nothing between two signs",
    "x3": "found 'x3'; wanted CHANNELS or CHANNELSxKERNEL",
    "16x": "found '16x'",
    "0": "found '0'",
    "016": "found '016'",
    "16x0": "found '16x0'",
    "16x100": "found '16x100'",
    "100000": "found '100000'",
    "16,16": "found '16,16'",
    " 16": "found ' 16'",
    "\N{SUPERSCRIPT TWO}": "found '\N{SUPERSCRIPT TWO}'",
    "8-16x4": "found a kernel of 4; wanted an odd one, which keeps the size",
    "16+": r"found \+; wanted \+UNITS",
    "16+0": r"found \+0; wanted \+UNITS",
    "16+5+5": r"found \+5\+5; wanted \+UNITS",
    "16+5x3": r"found \+5x3; wanted \+UNITS",
    "16+5/16": r"found \+5/16; wanted \+UNITS",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_spec_is_one_line_with_the_option_and_what_was_found(text):
    for role in ("teacher", "student"):
        with pytest.raises(UserError, match=f"^--{role} .*: {WRONG[text]}") as caught:
            spec.network(role, text, (8, 8, 3), 10)
        assert "\n" not in str(caught.value)


def test_a_spec_has_at_most_100_layers():
    assert len(spec.network("student", "/".join(["1-1"] * 50), (8, 8, 3), 10).blocks) == 101
    with pytest.raises(UserError, match=r"^--student: found 101 layers; wanted at most 100$"):
        spec.network("student", "-".join(["1"] * 101), (8, 8, 3), 10)


# (student, teacher): (guided layer, hint layer, regressor), for images of 16x16; maps are written as their sides
PAIRS = {
    # the fifth of nine, 16, 16, 8, 8, 8, 4, 4, 4, 1, and the second of three, 8, 4, 1: the regressor is 5x5
    ("4-4-4/4-4-4/4-4-4", "8-8-8"): (5, 2, "conv"),
    # of ten the second of both middle ones, with a map of 4
    ("4-4-4/4-4-4/4-4-4/4", "8-8-8"): (6, 2, "conv"),
    # 8, 4, 2, 1 of the teacher: the first of both middle ones, 4
    ("4/4/4", "8-8-8-8"): (2, 2, "conv"),
    # 8, 1 of the teacher: the first, 8
    ("4-4/4", "8-8"): (2, 1, "conv"),
    # 8, 4, 4, 2, 1: the third of five is the hint; of 8, 4, 2, 1 the third is too small for it, and the second is not
    ("4-4-4-4", "8/8/8-8/8"): (2, 3, "conv"),
    # 16, 8, 8, 8, 4, 1: the second of both middle ones
    ("4-4/4-4-4/4", "8-8"): (4, 1, "conv"),
    # the channels do not matter
    ("4/4-9-4/4", "8-8"): (3, 1, "conv"),
    # 16, 16, 16, 16, 8, 4, 1: the fourth, although the fifth has a smaller map that is large enough
    ("4-4-4-4-4/4/4", "8-8"): (4, 1, "conv"),
    # units are a layer: the second of three, whose map is 1
    ("4-4+9", "8"): (2, 1, "conv"),
    ("4-4-4", "8-8+50"): (2, 2, "conv"),
    # of four the teacher's first middle one; the student's second, of 8, 4, 1, is too small, and so is that before it
    ("4-4-4", "8-8-8+50"): (2, 2, "conv"),
    ("4-4-4+9", "8-8"): (1, 1, "conv"),
    # units are no guided layer
    ("4+9", "8"): (1, 1, "conv"),
    ("4+9", "8-8-8/8"): (1, 2, "fc"),
    # a hint of 16 (of 16, 16, 8, 1), and no layer of the student has more than 8: its middle layer
    ("4", "8-8-8/8"): (1, 2, "fc"),
    ("4-4", "8-8-8/8"): (2, 2, "fc"),
    ("4-4-4", "8-8-8/8"): (2, 2, "fc"),
    ("4-4-4-4", "8-8-8/8"): (3, 2, "fc"),
    ("4-4-4-4-4", "8-8-8/8"): (3, 2, "fc"),
    ("4-4-4-4-4+9", "8-8-8/8"): (4, 2, "fc"),
}


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_the_pair_is_the_one_chosen_by_hand(student, teacher):
    wanted = PAIRS[student, teacher]
    nets = [spec.network(*role, (16, 16, 1), 10) for role in (("student", student), ("teacher", teacher))]
    assert spec.pair(*nets) == wanted
    guided, hint, regressor = wanted
    shapes = spec.shapes(nets[0])[guided - 1], spec.shapes(nets[1])[hint - 1]
    assert (shapes[0][0] >= shapes[1][0]) == (regressor == "conv")


def test_a_guided_map_is_large_enough_both_ways_and_lies_at_the_middle_or_before_it():
    def network(image, *blocks):
        return Network("by hand", image, (*blocks, Output(2)))

    tall = network((9, 5, 1), Conv(2, 3, pad=1), Conv(2, 3), Conv(2, 3))  # 9x5, 7x3, 5x1
    assert spec.pair(tall, network((7, 3, 1), Conv(3, 1))) == (2, 1, "conv")
    assert spec.pair(tall, network((4, 1, 1), Conv(3, 1))) == (2, 1, "conv")  # although 5x1 would do
    assert spec.pair(tall, network((2, 4, 1), Conv(3, 1))) == (1, 1, "conv")
    assert spec.pair(tall, network((8, 2, 1), Conv(3, 1))) == (1, 1, "conv")
    assert spec.pair(tall, network((2, 6, 1), Conv(3, 1))) == (2, 1, "fc")
    assert spec.pair(tall, network((10, 1, 1), Conv(3, 1))) == (2, 1, "fc")


# How much later than the middle the paper's guided layer is. FitNets 3 and 4 are guided right behind a pooling.
LATER = {"mnist": 0, "cifar10-fitnet1": 0, "cifar10-fitnet2": 0, "cifar10-fitnet3": 1, "cifar10-fitnet4": 1}
LATER |= {"cifar10-30m-5": 0, "cifar10-30m-7": 0, "cifar10-30m-9": 0, "cifar10-30m-11": 1}


@pytest.mark.parametrize("name", LATER)
def test_for_the_papers_networks_the_pair_is_the_papers_or_one_layer_before_it(name):
    experiment = EXPERIMENTS[name]
    [guided], [hint] = experiment.presets["paper"].guided_layer, experiment.presets["paper"].hint_layer
    assert spec.pair(experiment.student, experiment.teacher) == (guided - LATER[name], hint, "conv") and hint == 2


def black(count, image=(16, 16, 1), labels=None, groups=None):
    """A data set of black images that take no memory."""
    images = np.broadcast_to(np.uint8(0), (count, *image))
    labels = np.arange(count) % 2 if labels is None else labels
    return Dataset("a set", images, labels, images[:2], labels[:2], groups)


def runs_of(*sizes):
    """Groups of these sizes, one after the other; their numbers fall."""
    return np.repeat(np.arange(len(sizes))[::-1], sizes)


# (training images, groups): (to train on, to validate)
SHARES = [
    (100, None, 90, 10),
    (109, None, 99, 10),
    (10, None, 9, 1),
    (5, None, 4, 1),
    (100_000, None, 90_000, 10_000),
    (250_000, None, 240_000, 10_000),
    (30, runs_of(*[1] * 30), 27, 3),
    (30, runs_of(10, 10, 6, 4), 26, 4),  # 3 would cut the last group
    (30, runs_of(10, 10, 7, 3), 27, 3),
    (30, runs_of(10, 10, 8, 2), 20, 10),  # 3 would cut the last but one
    (30, runs_of(10, 20), 10, 20),
    (20, runs_of(20), 1, 19),  # a single group cannot be parted
]


@pytest.mark.parametrize(("total", "groups", "train", "validation"), SHARES)
def test_a_tenth_validates_rounded_up_to_whole_groups(total, groups, train, validation):
    experiment = EXPERIMENTS["faces"]
    adapted = sized(experiment, black(total, groups=groups))
    assert adapted.presets.keys() == {"default", "paper"}
    for name, preset in adapted.presets.items():
        assert preset == replace(experiment.presets[name], train=train, validation=validation)
    assert replace(adapted, presets=experiment.presets) == experiment


@pytest.mark.parametrize("name", ["faces", "faces-fitnet2"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_faces_are_fitted_to_the_channels_and_the_number_of_images(name, channels):
    before = EXPERIMENTS[name]
    after = fitted(before, black(60, (16, 16, channels), groups=runs_of(20, 30, 10)))
    for network, old in ((after.teacher, before.teacher), (after.student, before.student)):
        assert network == replace(old, input=(16, 16, channels))
        assert networks.build(network).children["0"].params["0.w"].shape[2] == channels
    sizes = {preset: (p.train, p.validation, p.test) for preset, p in after.presets.items()}
    assert sizes == {"default": (50, 10, None), "paper": (50, 10, None)}
    same = {f.name for f in fields(OWN)} - {"train", "validation"}
    assert all(getattr(after.presets[p], n) == getattr(before.presets[p], n) for p in before.presets for n in same)


# (images, number of classes, student, teacher): (guided layer, hint layer, regressor)
OWNS = [
    ((32, 32, 3), 10, OWN_STUDENT, OWN_TEACHER, 5, 2, "conv"),  # the fifth of nine, the second of three
    ((28, 20, 1), 2, OWN_STUDENT, OWN_TEACHER, 5, 2, "conv"),
    ((9, 8, 4), 26, "4-4/4", "8-8", 2, 1, "conv"),
    ((16, 16, 2), 3, "4-4-4", "8-8-8/8+20", 1, 3, "conv"),  # 8x8, which the student's second does not have
    ((16, 16, 2), 3, "4-4-4", "8-8-8-8/8", 2, 3, "fc"),  # 16x16
]


@pytest.mark.parametrize(("image", "classes", "student", "teacher", "guided", "hint", "regressor"), OWNS)
def test_an_experiment_of_ones_own_has_the_networks_pair_and_sizes_of_its_data(
    image, classes, student, teacher, guided, hint, regressor
):
    labels = np.arange(70) % classes  # the largest of which says how many classes there are
    made = of_own(black(70, image, labels), student, teacher)
    assert made.data == "own" and made.others == {}
    assert made.student == spec.network("student", student, image, classes)
    assert made.teacher == spec.network("teacher", teacher, image, classes)
    assert made.student.input == made.teacher.input == image
    assert made.student.blocks[-1] == made.teacher.blocks[-1] == Output(classes)
    preset = replace(OWN, guided_layer=(guided,), hint_layer=(hint,), regressor=regressor, train=63, validation=7)
    assert made.presets == {"default": preset} and preset.test is None


def test_the_example_of_ones_own_is_what_its_data_would_give():
    example = EXPERIMENTS["own"]
    made = of_own(black(70, (32, 32, 3), np.arange(70) % 10), OWN_STUDENT, OWN_TEACHER)
    assert (made.student, made.teacher) == (example.student, example.teacher)
    sizes = {"train": OWN.train, "validation": OWN.validation}
    assert replace(made.presets["default"], **sizes) == example.presets["default"]
