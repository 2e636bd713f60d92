"""Draws digits that look handwritten: no file, no download, the same images for the same seed.

A digit is a few pen strokes, and a stroke is a curve through control points. Random changes act on the curve before it
is inked: the points wander, the page is tilted, sheared, stretched and bent (the elastic distortion of Simard et al.,
ICDAR 2003, applied to the path instead of the pixels), and the pressure of the pen varies. Pixels come last, as a
function of their distance to the path. All constants are chosen here.
"""

from functools import cache

import numpy as np

from minifit import UserError
from minifit.backend import refuse_more_than_memory

SIZE = 28  # pixels a side
HEIGHT = 20.0  # pixels that the unit square of STYLES spans before it is scaled
POINTS = 72  # samples of a path: under a pixel apart, so that their discs merge into a line
BLOCK = 500  # images drawn together, from one generator

JITTER = 0.034  # of a control point; up to 1.6 times as much for sloppy writers, a third for neat ones
BEND = 0.085  # of the elastic distortion's waves
ROTATION, SHEAR, STRETCH, SHIFT = 0.34, 0.42, 0.25, 2.5  # radians (two sigma), ratio (two sigma), ratio, pixels
NOISE = 0.22  # the largest standard deviation of a pixel's noise, of a full black of 1

# Every way of writing a digit: curves, parted by a slash, through points x,y in percent of the unit square, y
# downwards. Equal points are one control point: curves that meet in a corner stay joined however it wanders.
STYLES = [
    [  # 0: an oval; one whose end crosses its beginning
        "54,06 30,18 20,50 29,82 50,94 72,80 80,50 71,19 54,06",
        "63,13 48,06 27,24 21,58 36,90 62,89 78,60 74,26 56,10 40,16",
    ],
    [  # 1: a bar; with a flag; with a flag and a foot
        "52,05 51,50 50,95",
        "33,26 54,05 / 54,05 53,50 52,95",
        "34,24 53,06 / 53,06 52,50 52,94 / 30,94 52,94 74,93",
    ],
    [  # 2: a corner at the foot; a loop at the foot
        "24,28 34,11 55,06 73,20 68,44 45,70 19,93 / 19,93 50,92 82,92",
        "25,25 45,07 70,16 68,44 47,74 27,92 17,85 29,76 50,87 68,94 84,86",
    ],
    [  # 3: two bows; a flat top
        "25,16 49,06 71,19 66,38 43,47 / 43,47 70,54 77,73 56,93 22,85",
        "25,08 50,08 74,07 / 74,07 45,42 / 45,42 70,50 75,73 53,94 22,86",
    ],
    [  # 4: open; closed
        "30,08 23,33 19,57 / 19,57 50,58 84,54 / 70,10 67,50 63,95",
        "62,05 40,34 15,63 / 15,63 50,64 86,62 / 62,05 62,50 61,95",
    ],
    [  # 5: three strokes; a single one
        "34,08 55,08 78,07 / 34,08 28,44 / 28,44 52,38 75,52 72,80 50,94 21,86",
        "77,10 52,08 33,22 38,40 62,50 73,70 57,91 23,88",
    ],
    [  # 6: a bent stem; a straight one with a round belly
        "68,06 41,24 26,58 35,89 60,92 74,72 60,53 39,58 28,74",
        "52,05 36,36 27,70 42,94 67,86 69,64 48,56 28,72",
    ],
    [  # 7: plain; with a bar; with a hook
        "20,10 50,09 80,08 / 80,08 59,45 43,95",
        "20,10 50,09 80,08 / 80,08 60,45 45,95 / 36,51 55,49 77,47",
        "21,24 22,10 / 22,10 50,10 78,08 / 78,08 62,38 52,95",
    ],
    [  # 8: one stroke that crosses itself; two rings
        "70,17 50,06 31,19 41,41 65,59 73,78 51,94 28,79 38,57 62,39 70,17",
        "50,47 31,38 32,15 52,06 70,18 68,38 50,47 / 50,47 28,59 27,83 50,94 74,82 72,58 50,47",
    ],
    [  # 9: a straight stem; a curved tail
        "72,20 52,06 30,19 31,42 52,49 72,20 / 72,20 69,55 65,95",
        "71,21 52,06 29,21 35,45 59,44 71,21 / 71,21 74,55 60,89 29,88",
    ],
]


def load(train=5000, test=5000, seed=0):
    """The set's name, images uint8 (N, 28, 28, 1) and labels uint8 (N,), then a disjoint draw of both for testing."""
    for setting, value, least in (("train", train, 1), ("test", test, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"digits: {setting} is {value}, it must be at least {least}")
    # Of each image, its bytes twice, while blocks are joined, and then its pixels in single precision.
    needed = (train + test) * SIZE * SIZE * (2 + 4)
    refuse_more_than_memory(f"digits: {train:,} and {test:,} images", needed, "draw fewer")
    images, labels = draw(train, seed)
    test_images, test_labels = draw(test, seed, stream=1)
    return "digits", images[..., None], labels, test_images[..., None], test_labels


def draw(count, seed, stream=0):
    """`count` digits: images uint8 (count, 28, 28), ink is 255, and labels uint8 (count,), balanced and shuffled.

    Image i depends on (seed, stream, i) alone: asking for more keeps the first ones, and streams share no draws.
    """
    blocks = []
    for block in range(-(-count // BLOCK)):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, block)))
        labels = rng.permutation(np.arange(BLOCK) % 10).astype(np.uint8)
        blocks.append((_ink(_distort(_write(labels, rng), rng), rng), labels))
    images, labels = (np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True))
    return images, labels


def _write(labels, rng):
    """Pen paths (N, POINTS, 2) in the unit square: path = basis @ (control points + jitter)."""
    paths = np.empty((len(labels), POINTS, 2))
    for digit, styles in enumerate(_pens()):
        of_digit = np.flatnonzero(labels == digit)
        style = rng.integers(len(styles), size=len(of_digit))
        for number, (controls, basis) in enumerate(styles):
            chosen = of_digit[style == number]
            sloppiness = JITTER * rng.uniform(0.3, 1.6, (len(chosen), 1, 1))
            paths[chosen] = basis @ (controls + sloppiness * rng.standard_normal((len(chosen), *controls.shape)))
    return paths


def _distort(paths, rng):
    """Bend the unit square with three random waves, then tilt, shear, stretch and place it: paths in pixels."""
    count = len(paths)
    paths = paths - 0.5
    bent = paths.copy()
    for _ in range(3):
        wave = rng.normal(0.0, 3.0, (count, 2, 1))  # radians per unit: about half a period across a digit
        phase = rng.uniform(0.0, 2 * np.pi, (count, 1, 1))
        bent += np.sin(paths @ wave + phase) * rng.normal(0.0, BEND / np.sqrt(3), (count, 1, 2))

    angle, shear = rng.normal(0.0, ROTATION / 2, count), rng.normal(0.0, SHEAR / 2, count)
    width, height = rng.uniform(1 - STRETCH, 1 + STRETCH, (2, count))
    cos, sin = np.cos(angle), np.sin(angle)
    # rows: the images of the x and the y axis under stretch, then shear, then rotation
    affine = np.array([[width * cos, width * sin], [height * (shear * cos - sin), height * (shear * sin + cos)]])
    centre = (SIZE - 1) / 2 + rng.uniform(-SHIFT, SHIFT, (count, 1, 2))
    return HEIGHT * (bent @ affine.transpose(2, 0, 1)) + centre


def _ink(paths, rng):
    """Pixels of paths: ink = clip(1/2 + (radius - distance) / softness, 0, 1), then contrast and noise.

    paths (N, POINTS, 2)    images uint8 (N, 28, 28)
    """
    count = len(paths)
    radius = rng.uniform(0.7, 1.7, (count, 1, 1))
    softness = rng.uniform(1.0, 2.4, (count, 1, 1))  # pixels over which the edge of a line fades: the blur
    contrast = rng.uniform(0.55, 1.0, (count, 1, 1))
    noise = rng.uniform(0.0, NOISE, (count, 1, 1))

    # Pressure swells the pen by up to a quarter along the path. Distances are measured in radii of the pen at each
    # point, so that they stay sums of one term in x and one in y, and the nearest point is a running minimum.
    swell = rng.uniform(0.0, 2 * np.pi, (count, 1)) + np.linspace(0.0, 2 * np.pi, POINTS)
    pen = 1.0 + rng.uniform(0.0, 0.25, (count, 1)) * np.sin(swell)
    offsets = (np.arange(SIZE) - paths[..., None]) / pen[..., None, None]  # (N, POINTS, 2, 28)
    squares = (offsets * offsets).astype(np.float32)
    nearest = np.full((count, SIZE, SIZE), np.inf, np.float32)
    for point in range(POINTS):
        np.minimum(nearest, squares[:, point, 1, :, None] + squares[:, point, 0, None, :], out=nearest)

    ink = contrast * np.clip(0.5 + (radius - np.sqrt(nearest)) / softness, 0.0, 1.0)
    ink += noise * rng.standard_normal(ink.shape)
    return np.rint(255 * np.clip(ink, 0.0, 1.0)).astype(np.uint8)


def _pen(style):
    """A style's control points (K, 2) and the basis (POINTS, K) of the natural cubic splines through them."""
    from scipy.interpolate import CubicSpline  # takes longer to import than the rest of minifit

    curves = [[tuple(map(int, point.split(","))) for point in curve.split()] for curve in style.split("/")]
    controls = list(dict.fromkeys(point for curve in curves for point in curve))
    knots = [np.append(0.0, np.hypot(*np.diff(curve, axis=0).T).cumsum()) for curve in curves]  # chord lengths
    ends = np.cumsum([knot[-1] for knot in knots])
    shares = np.diff(np.rint(POINTS * ends / ends[-1]).astype(int), prepend=0)
    basis = []
    for curve, knot, share in zip(curves, knots, shares, strict=True):
        selection = np.eye(len(controls))[[controls.index(point) for point in curve]]
        basis.append(CubicSpline(knot, selection, bc_type="natural")(np.linspace(0.0, knot[-1], share)))
    return np.array(controls) / 100, np.concatenate(basis)


@cache
def _pens():
    """The pens of every style of every digit."""
    return [[_pen(style) for style in styles] for styles in STYLES]
