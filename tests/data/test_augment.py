"""Flips and crops: against padding and cropping spelled out, and what must hold for any worker to apply them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifit.data import augment


def images(count, height=5, width=4, channels=3, seed=0):
    x = np.random.default_rng(seed).standard_normal((count, height, width, channels)).astype(np.float32)
    x.flags.writeable = False
    return x


def spelled_out(x, choices, pad):
    """Mirror, pad with zeros, cut the window out: pixel by pixel."""
    count, height, width, channels = x.shape
    y = np.zeros_like(x)
    for n in range(count):
        mirror, down, right = choices[n]
        padded = np.zeros((height + 2 * pad, width + 2 * pad, channels), x.dtype)
        for row in range(height):
            for column in range(width):
                padded[pad + row, pad + column] = x[n, row, width - 1 - column if mirror else column]
        for row in range(height):
            for column in range(width):
                y[n, row, column] = padded[pad - down + row, pad - right + column]
    return y


@given(st.integers(0, 2**32), st.integers(0, 3), st.booleans(), st.integers(4, 7), st.integers(4, 7), st.integers(0, 4))
def test_flips_and_crops_are_those_of_a_padded_mirrored_image(seed, pad, flips, height, width, count):
    x = images(count, height, width)
    choices = augment.draw(np.random.default_rng(seed), count, flips, pad)
    np.testing.assert_array_equal(augment.apply(x, choices), spelled_out(x, choices, pad))


def test_every_choice_on_a_tiny_image_by_hand():
    x = np.array([[1, 2], [3, 4]], np.float32).reshape(1, 2, 2, 1)
    for choice, wanted in {
        (0, 0, 0): [[1, 2], [3, 4]],
        (1, 0, 0): [[2, 1], [4, 3]],
        (0, 1, 0): [[0, 0], [1, 2]],
        (0, -1, 0): [[3, 4], [0, 0]],
        (0, 0, 1): [[0, 1], [0, 3]],
        (0, 0, -1): [[2, 0], [4, 0]],
        (1, 1, 1): [[0, 0], [0, 2]],
        (1, -1, -1): [[3, 0], [0, 0]],
    }.items():
        assert augment.apply(x, np.array([choice]))[0, ..., 0].tolist() == wanted, choice


def test_without_flips_and_crops_nothing_is_drawn_and_nothing_changes():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    choices = augment.draw(rng, 6, flips=False, pad=0)
    assert rng.bit_generator.state == before
    x = images(6)
    y = augment.apply(x, choices)
    np.testing.assert_array_equal(y, x)
    assert not np.shares_memory(y, x)


def test_with_flips_alone_an_image_is_itself_or_its_mirror_image():
    x = images(40)
    choices = augment.draw(np.random.default_rng(0), 40)
    flipped = choices[:, 0] == 1
    assert 0 < flipped.sum() < 40 and not choices[:, 1:].any()
    y = augment.apply(x, choices)
    np.testing.assert_array_equal(y[flipped], x[flipped][:, :, ::-1])
    np.testing.assert_array_equal(y[~flipped], x[~flipped])


def test_with_crops_alone_nothing_is_mirrored():
    choices = augment.draw(np.random.default_rng(0), 40, flips=False, pad=2)
    assert not choices[:, 0].any() and choices[:, 1].any() and choices[:, 2].any()


def test_every_flip_and_every_shift_is_drawn_equally_often():
    choices = augment.draw(np.random.default_rng(0), 90_000, pad=1)
    kinds, counts = np.unique(choices, axis=0, return_counts=True)
    assert len(kinds) == 2 * 3 * 3
    np.testing.assert_allclose(counts, 5000, atol=5 * np.sqrt(5000))
    _, counts = np.unique(augment.draw(np.random.default_rng(0), 1000, pad=8)[:, 1:], return_counts=True)
    assert len(counts) == 17, "from 8 pixels up or left to 8 down or right"


def test_the_same_generator_draws_the_same_choices_and_a_resumed_one_goes_on():
    rng, resumed = np.random.default_rng(3), np.random.default_rng()
    first = augment.draw(rng, 50, pad=4)
    resumed.bit_generator.state = rng.bit_generator.state
    second = augment.draw(rng, 50, pad=4)
    np.testing.assert_array_equal(augment.draw(resumed, 50, pad=4), second)
    np.testing.assert_array_equal(augment.draw(np.random.default_rng(3), 50, pad=4), first)
    assert (first != second).any()


def test_a_slice_with_its_choices_gives_the_slice_of_the_whole():
    x, choices = images(9), augment.draw(np.random.default_rng(1), 9, pad=2)
    whole = augment.apply(x, choices)
    np.testing.assert_array_equal(augment.apply(x[3:7], choices[3:7]), whole[3:7])
    order = np.array([8, 0, 4, 4])
    np.testing.assert_array_equal(augment.apply(x[order], choices[order]), whole[order])


def test_images_do_not_meet():
    x = np.ones((20, 6, 6, 3), np.float32) * np.arange(1, 21, dtype=np.float32)[:, None, None, None]
    y = augment.apply(x, augment.draw(np.random.default_rng(0), 20, pad=5))
    for n, image in enumerate(y):
        assert set(np.unique(image)) <= {0, n + 1} and n + 1 in image


def test_types_and_layouts_of_images_do_not_matter():
    choices = augment.draw(np.random.default_rng(2), 5, pad=2)
    x = images(5)
    y = augment.apply(x, choices)
    assert y.dtype == np.float32
    assert augment.apply(x.astype(np.float64), choices).dtype == np.float64
    np.testing.assert_array_equal(augment.apply(np.asfortranarray(x), choices), y)
    assert augment.apply(x[:0], choices[:0]).shape == (0, 5, 4, 3)


def test_choices_are_small():
    assert augment.draw(np.random.default_rng(0), 128, pad=8).nbytes < 1000


def test_what_cannot_be_meant_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="pad is -1"):
        augment.draw(rng, 3, pad=-1)
    with pytest.raises(ValueError, match=r"choices \(3, 3\) for images \(4, 5, 4, 3\), wanted \(4, 3\)"):
        augment.apply(images(4), augment.draw(rng, 3))
    for shift in ([0, 5, 0], [0, 0, -4]):
        with pytest.raises(ValueError, match="leaves nothing of an image of 5x4"):
            augment.apply(images(1), np.array([shift]))
