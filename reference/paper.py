"""The paper's numbers and settings as data: published results, the networks and their sizes, training, contradictions.

Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets, ICLR 2015 (arXiv 1412.6550,
version 4).

Sources have short tags: "paper 3.1" is a section, "released code" the authors' Theano code of May 2015, "pylearn2" the
maxout scripts from which the teachers come, "computed" what follows by arithmetic, "ours" a choice of minifit's. Stages
have minifit's names: teacher, backprop, kd, fitnet. Results are in percent.
"""

from dataclasses import dataclass

TABLE_1 = {"teacher": 90.18, "fitnet": 91.61}  # CIFAR-10, test accuracy; the student is FitNet 4
TABLE_1_OTHERS = {  # by the names of minifit's methods; those of mimic nets have 54M, 70M and 70M weights
    "mimic": 84.6,
    "mimic-conv": 84.9,
    "mimic-ensemble": 85.8,
    "maxout": 90.65,
    "nin": 91.2,
    "dsn": 91.78,
    "dsn-student": 88.2,  # "Deeply-Supervised Networks (19)": FitNet 4
}

TABLE_2 = {"teacher": 63.54, "fitnet": 64.96}  # CIFAR-100, test accuracy
TABLE_2_OTHERS = {"maxout": 61.43, "nin": 64.32, "dsn": 65.43}

TABLE_3 = {"teacher": 2.38, "fitnet": 2.42}  # SVHN, test error
TABLE_3_OTHERS = {"maxout": 2.47, "nin": 2.35, "dsn": 1.92}

TABLE_4 = {"teacher": 0.55, "backprop": 1.9, "kd": 0.65, "fitnet": 0.51}  # MNIST, test error
TABLE_4_OTHERS = {"maxout": 0.45, "nin": 0.47, "dsn": 0.39}


@dataclass(frozen=True)
class Compressed:
    """A row of Table 5: a student on CIFAR-10 beside its 9M teacher."""

    layers: int
    weights: str
    multiplications: str
    accuracy: float
    speedup: float  # measured, not the ratio of multiplications
    compression: float  # 9.0M over the rounded size


TABLE_5 = {
    "FitNet 1": Compressed(11, "250K", "30M", 89.01, 13.36, 36.0),
    "FitNet 2": Compressed(11, "862K", "108M", 91.06, 4.64, 10.44),
    "FitNet 3": Compressed(13, "1.6M", "392M", 91.10, 1.37, 5.62),
    "FitNet 4": Compressed(19, "2.5M", "382M", 91.61, 1.52, 3.60),
}
TABLE_5_TEACHER = {"layers": 5, "weights": "9M", "multiplications": "725M", "accuracy": 90.18}

# paper 3.4: AFLW, face or not, validation error; a FitNet is trained with KD alone, then with hints (HT)
AFLW = {"teacher": 4.21, "FitNet 1": {"kd": 4.58, "fitnet": 2.55}, "FitNet 2": {"kd": 1.95, "fitnet": 1.85}}

# Figure 2 and the text around it (paper 4.1): CIFAR-10, depth at a fixed number of multiplications
FIGURE_2_POINTS = {  # (budget, layers) -> accuracies, read off the figure's vector coordinates; no point: no training
    ("30M", 5): {"backprop": 83.58, "kd": 84.34, "fitnet": 84.93},
    ("30M", 7): {"kd": 86.46, "fitnet": 86.98},
    ("30M", 9): {"fitnet": 88.21},
    ("30M", 11): {"fitnet": 88.61},
    ("107M", 5): {"backprop": 85.95, "kd": 87.49, "fitnet": 87.31},
    ("107M", 7): {"kd": 89.45, "fitnet": 90.10},
    ("107M", 9): {"kd": 90.58, "fitnet": 90.94},
    ("107M", 11): {"kd": 90.86, "fitnet": 91.01},
}
FIGURE_2 = {
    "deepest net that trains at 30M, in layers": {"backprop": 5, "kd": 7, "fitnet": 13},
    "accuracy of 7 layers at 107M": {"without hints": 89.45, "with hints": 90.1},
    "gain of 11 layers over 5, with hints": {"30M": 3.4, "107M": 4.11},
}

# What stands beside a run of each experiment: the data set, and the error in percent of each stage
_TEACHER, _TEACHER_100 = (round(100 - table["teacher"], 2) for table in (TABLE_1, TABLE_2))
RESULTS = {
    "mnist": ("MNIST", TABLE_4),
    **{
        f"cifar10-fitnet{i}": ("CIFAR-10", {"teacher": _TEACHER, "fitnet": round(100 - row.accuracy, 2)})
        for i, row in enumerate(TABLE_5.values(), start=1)
    },
    **{f"cifar100-fitnet{i}": ("CIFAR-100", {"teacher": _TEACHER_100}) for i in (1, 2, 3)},
    "cifar100-fitnet4": ("CIFAR-100", {"teacher": _TEACHER_100, "fitnet": round(100 - TABLE_2["fitnet"], 2)}),
    **{
        f"cifar10-{budget}-{layers}": ("CIFAR-10", {"teacher": _TEACHER})
        for budget in ("30m", "107m")
        for layers in (5, 7, 9, 11)
    },
    "svhn": ("SVHN", TABLE_3),
    "faces": ("faces", {"teacher": AFLW["teacher"], **AFLW["FitNet 1"]}),
    "faces-fitnet2": ("faces", {"teacher": AFLW["teacher"], **AFLW["FitNet 2"]}),
    "cifar10-107m-7": (
        "CIFAR-10",
        {"teacher": _TEACHER, "fitnet": round(100 - FIGURE_2["accuracy of 7 layers at 107M"]["with hints"], 2)},
    ),
}

# What must stand beside them, where they are of other images than the run's
_AFLW = "The paper's figures are errors on AFLW; on these images only the order of the networks can be compared."
ABOUT = {"faces": _AFLW, "faces-fitnet2": _AFLW}
_CIFAR100 = "The paper's figure is that of the teacher in its Table 2, whose student is FitNet 4."
ABOUT |= {f"cifar100-fitnet{i}": _CIFAR100 for i in (1, 2, 3)}
ABOUT["cifar100-fitnet4"] = "The paper's figures are those of its Table 2: one network each."
ABOUT["svhn"] = "The paper's figures are those of its Table 3: one network each, its own teacher, on 598,388 images."

# paper 3.1: other ways to use two stages, tried on the 19-layer net; none of them is reported to work
ABLATIONS = (
    "labels in stage 1, labels in stage 2",
    "labels in stage 1, KD in stage 2",
    "one stage: labels at the guided layer and at the output (88.2 with every layer supervised)",
    "one stage: eq. 3 and eq. 2 together",
)


@dataclass(frozen=True)
class Conv:
    """Channels, square kernel, zero padding, (size, stride) of the max-pooling after it; pieces 1 is ReLU."""

    channels: int
    kernel: int
    pad: int
    pool: tuple | None = None
    pieces: int = 2


@dataclass(frozen=True)
class Full:
    """A fully connected layer; pieces 1 is the layer before the softmax or the sigmoid."""

    units: int
    pieces: int = 1


@dataclass(frozen=True)
class Network:
    """The input (H, W, C) and the layers, with the pieces that a source states where the counts need 2."""

    input: tuple
    layers: tuple
    source: str


CIFAR = (32, 32, 3)


def _thin(widths, classes=10, blocks=((2, 2), (2, 2), (8, 8))):
    # Tables 6 and 7 print widths only: 3x3 kernels, pad 1, a pool at the end of each block, fc maxout 500, softmax
    layers = []
    for channels, pool in zip(widths, blocks, strict=True):
        layers += [Conv(c, 3, 1) for c in channels[:-1]] + [Conv(channels[-1], 3, 1, pool)]
    return Network(CIFAR, (*layers, Full(500, 5), Full(classes)), "paper, tables 6 and 7, A.1.2")


def _cifar_teacher(classes):
    convolutions = Conv(96, 8, 4, (4, 2)), Conv(192, 8, 3, (4, 2)), Conv(192, 5, 3, (2, 2))
    return Network(CIFAR, (*convolutions, Full(500, 5), Full(classes)), "paper A.1.1, pylearn2")


def _face_student(first, others):
    layers = Conv(first, 3, 0, pieces=1), *[Conv(others, 3, 0, pieces=1)] * 6
    return Network((16, 16, 3), (*layers, Full(1)), "paper A.4")


TABLE_7 = {
    "FitNet 1": ((16, 16, 16), (32, 32, 32), (48, 48, 64)),
    "FitNet 2": ((16, 32, 32), (48, 64, 80), (96, 96, 128)),
    "FitNet 3": ((32, 48, 64, 64), (80, 80, 80, 80), (128, 128, 128)),
    "FitNet 4": ((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6),
}

# the nets of Figure 2 by (multiplications, layers); a net of 11 layers is FitNet 1 or FitNet 2
TABLE_6 = {
    ("30M", 5): ((64,), (64,), (64,)),
    ("30M", 7): ((16, 32), (32, 64), (64,)),
    ("30M", 9): ((16, 32), (32, 32, 32), (48, 64)),
    ("30M", 11): TABLE_7["FitNet 1"],
    ("107M", 5): ((128,), (128,), (128,)),
    ("107M", 7): ((32, 64), (80, 80), (128,)),
    ("107M", 9): ((32, 32), (64, 80, 80), (96, 128)),
    ("107M", 11): TABLE_7["FitNet 2"],
}

NETWORKS = {
    "MNIST teacher": Network(
        (28, 28, 1),
        (Conv(48, 8, 0, (4, 2)), Conv(48, 8, 3, (4, 2)), Conv(24, 5, 3, (2, 2), pieces=4), Full(10)),
        "paper A.2, pylearn2",
    ),
    "MNIST FitNet": Network(
        (28, 28, 1),
        (
            Conv(16, 5, 0),
            Conv(16, 3, 0, (4, 2)),
            Conv(16, 5, 3),
            Conv(16, 3, 0, (4, 2)),
            Conv(12, 3, 3, pieces=4),
            Conv(12, 3, 0, (2, 2), pieces=4),
            Full(10),
        ),
        "widths from paper A.2, kernels and padding from the released code",
    ),
    "CIFAR-10 teacher": _cifar_teacher(10),
    "CIFAR-100 teacher": _cifar_teacher(100),
    "FitNet 1": _thin(TABLE_7["FitNet 1"]),
    "FitNet 2": _thin(TABLE_7["FitNet 2"]),
    "FitNet 3": _thin(TABLE_7["FitNet 3"]),
    "FitNet 3, block 1 of 64s": _thin(((64, 64, 64, 64), *TABLE_7["FitNet 3"][1:])),
    "FitNet 4": _thin(TABLE_7["FitNet 4"]),
    **{f"{name}, 100 classes": _thin(widths, classes=100) for name, widths in TABLE_7.items()},
    "SVHN teacher": Network(
        (32, 32, 3),
        (Conv(64, 5, 4, (3, 2)), Conv(128, 5, 3, (3, 2)), Conv(128, 5, 3, (3, 2)), Full(400, 5), Full(10)),
        "paper A.3, pylearn2",
    ),
    "SVHN FitNet": _thin(TABLE_7["FitNet 3"]),
    "AFLW teacher": Network(
        (16, 16, 3),
        (Conv(128, 3, 0, (2, 2), 1), Conv(512, 2, 0, pieces=1), Conv(512, 5, 0, pieces=1), Full(1)),
        "paper A.4",
    ),
    "AFLW FitNet 1": _face_student(16, 32),
    "AFLW FitNet 2": _face_student(32, 64),
}
DEPTH_SERIES = {key: _thin(widths) for key, widths in TABLE_6.items()}
NETWORKS |= {f"{budget}, {layers} layers": network for (budget, layers), network in DEPTH_SERIES.items()}


@dataclass(frozen=True)
class Count:
    """Published and computed sizes: weights without biases, and multiplications for one image.

    A layer multiplies k^2 C_in C_out pieces (map area before pooling) times. With ceil-mode pooling and 2 pieces in
    each maxout layer, the fully connected one too, the published figures come out, FitNet 3's excepted; the 2.5M for
    100 classes repeats that for 10. "stated" takes the pieces that a source gives: 5 in fully connected maxout layers
    (paper), 4 in MNIST's last convolutions (released code, pylearn2). ReLU has one piece. None: not published.
    """

    published_weights: str | None
    published_multiplications: str | None
    weights: int
    multiplications: int
    stated_weights: int
    stated_multiplications: int


COUNTS = {
    "MNIST teacher": Count("361K", None, 360_816, 28_673_136, 418_416, 30_746_736),
    "MNIST FitNet": Count("30K", None, 29_944, 5_310_648, 35_992, 5_625_144),
    "CIFAR-10 teacher": Count("9M", "725M", 9_044_360, 725_090_696, 16_244_360, 732_290_696),
    "CIFAR-100 teacher": Count("9M", None, 9_089_360, 725_135_696, 16_289_360, 732_335_696),
    "FitNet 1": Count("250K", "30M", 249_576, 30_150_024, 345_576, 30_246_024),
    "FitNet 2": Count("862K", "108M", 861_928, 107_775_880, 1_053_928, 107_967_880),
    "FitNet 3": Count("1.6M", "392M", 1_503_304, 323_946_376, 1_695_304, 324_138_376),
    "FitNet 3, block 1 of 64s": Count("1.6M", "392M", 1_569_544, 391_776_136, 1_761_544, 391_968_136),
    "FitNet 4": Count("2.5M", "382M", 2_544_712, 381_749_128, 2_736_712, 381_941_128),
    "FitNet 1, 100 classes": Count(None, None, 294_576, 30_195_024, 390_576, 30_291_024),
    "FitNet 2, 100 classes": Count(None, None, 906_928, 107_820_880, 1_098_928, 108_012_880),
    "FitNet 3, 100 classes": Count(None, None, 1_548_304, 323_991_376, 1_740_304, 324_183_376),
    "FitNet 4, 100 classes": Count("2.5M", None, 2_589_712, 381_794_128, 2_781_712, 381_986_128),
    "SVHN teacher": Count("4.9M", None, 4_928_800, 297_936_800, 10_458_400, 303_466_400),
    "SVHN FitNet": Count("1.5M", None, 1_503_304, 323_946_376, 1_695_304, 324_138_376),
    "AFLW teacher": Count(None, None, 6_821_248, 36_331_008, 6_821_248, 36_331_008),
    "AFLW FitNet 1": Count(None, None, 51_248, 2_775_872, 51_248, 2_775_872),
    "AFLW FitNet 2": Count(None, None, 203_872, 10_933_888, 203_872, 10_933_888),
}

OTHER_COUNTS = {"mimic net 64c-1200L-30000": "54M", "mimic net 128c-1200L-30000": "70M"}  # table 1

# Table 6 (computed, 2 pieces everywhere): weights, multiplications
DEPTH_COUNTS = {
    ("30M", 5): (219_912, 27_200_904),
    ("30M", 7): (208_104, 29_265_288),
    ("30M", 9): (217_320, 29_855_112),
    ("30M", 11): (249_576, 30_150_024),
    ("107M", 5): (729_736, 101_582_728),
    ("107M", 7): (563_272, 104_531_848),
    ("107M", 9): (756_808, 106_301_320),
    ("107M", 11): (861_928, 107_775_880),
}


# With the 5 pieces that the text states for the fully connected layer, 500 units have 1,500 filters more.
COUNTS |= {
    f"{budget}, {layers} layers": Count(None, budget, weights, mult, weights + more, mult + more)
    for (budget, layers), (weights, mult) in DEPTH_COUNTS.items()
    for more in [1_500 * TABLE_6[budget, layers][-1][-1]]
}


@dataclass(frozen=True)
class Hint:
    """A hint pair and its convolutional regressor, kernel k = guided side - hint side + 1 (paper 2.2).

    guided, hint: layer numbers in student and teacher    maps (H, W, C)    weights: one piece, without biases
    """

    guided: int
    hint: int
    guided_map: tuple
    hint_map: tuple
    kernel: int
    weights: int
    source: str


HINTS = {
    "MNIST FitNet": Hint(4, 2, (4, 4, 16), (4, 4, 48), 1, 768, "paper A.2"),
    "FitNet 1": Hint(6, 2, (8, 8, 32), (7, 7, 192), 2, 24_576, "paper, table 7"),
    "FitNet 2": Hint(6, 2, (8, 8, 80), (7, 7, 192), 2, 61_440, "paper, table 7"),
    "FitNet 3": Hint(8, 2, (8, 8, 80), (7, 7, 192), 2, 61_440, "paper, table 7"),
    "FitNet 4": Hint(11, 2, (8, 8, 80), (7, 7, 192), 2, 61_440, "paper, table 7"),
    "SVHN FitNet": Hint(8, 3, (8, 8, 80), (6, 6, 128), 3, 92_160, "ours: the paper gives no pair"),
    "AFLW FitNet 1": Hint(5, 3, (6, 6, 32), (2, 2, 512), 5, 409_600, "paper A.4"),
    "AFLW FitNet 2": Hint(5, 3, (6, 6, 64), (2, 2, 512), 5, 819_200, "paper A.4"),
}
# Table 6, by number of layers: the guided layer; the hint is always the teacher's layer 2
DEPTH_GUIDED = {5: 2, 7: 4, 9: 5, 11: 7}


@dataclass(frozen=True)
class Setting:
    """A value and who says so."""

    value: object
    source: str


TEMPERATURE = Setting(3.0, "paper A.1.2, A.2")

TRAINING = {
    "CIFAR students": {
        "initial weights": Setting(("uniform", -0.005, 0.005), "paper A.1.2"),
        "initial biases": Setting(0.0, "paper A.1.2"),
        "optimiser": Setting("RMSProp", "paper A.1.2"),
        "learning rate": Setting(0.005, "paper A.1.2"),
        "convolutions' share of the learning rate": Setting(0.05, "released code"),
        "batch": Setting(128, "paper A.1.2"),
        "epochs at most, each stage": Setting(500, "paper A.1.2"),
        "patience, epochs": Setting(100, "paper A.1.2"),
        "training and validation images": Setting((40_000, 10_000), "paper A.1.2"),
        "then on all 50,000 images for the epochs found": Setting(True, "paper A.1.2; not for Figure 2"),
        "lambda": Setting(("linear", 4.0, 1.0, 0, 500), "paper A.1.2; released code: from epoch 5 to 400"),
        "flips": Setting(True, "paper A.1.2"),
        "crops, from this much zero padding": Setting(8, "released code"),
        "dropout, weight decay": Setting(None, "released code"),
        "CIFAR-100": Setting("CIFAR-10's settings, all 50,000 images from the start", "paper A.1.2"),
    },
    "CIFAR preprocessing": {
        "contrast": Setting("each image less its mean, over its L2 norm, times 55", "pylearn2"),
        "whitening": Setting("ZCA of the training set, covariance + 0.1 I, all components", "pylearn2"),
    },
    "RMSProp": {
        "decay": Setting(0.9, "released code"),
        "floor under the root": Setting(1e-5, "pylearn2"),
        "mean square at the start, and its bias correction": Setting((0.0, None), "pylearn2"),
    },
    "regressor": {
        "initial weights": Setting(("uniform", -0.05, 0.05), "released code"),
        "max kernel norm": Setting(0.9, "released code"),
        "pieces": Setting("the teacher's", "released code"),
        "share of the learning rate": Setting(1.0, "released code"),
    },
    "MNIST student": {
        "training and validation images": Setting((50_000, 10_000), "paper A.2"),
        "initial weights": Setting(("uniform", -0.005, 0.005), "paper A.2"),
        "optimiser": Setting("SGD", "paper A.2; released code: RMSProp"),
        "learning rate": Setting(0.0005, "paper A.2"),
        "batch": Setting(128, "paper A.2"),
        "epochs at most, each stage": Setting(500, "released code"),
        "patience, epochs": Setting(100, "paper A.2"),
        "lambda": Setting(("linear", 4.0, 1.0, 0, 150), "paper A.2; released code: to 0, from epoch 5 to 150"),
        "max kernel norms": Setting((0.9, 0.9, 1.9365, 1.9365, 1.9365, 1.9365, 1.9365), "released code"),
        "pixels": Setting((0.0, 1.0), "paper A.2"),
        "augmentation": Setting(None, "paper A.2"),
    },
    "MNIST teacher": {
        "optimiser": Setting("SGD", "pylearn2"),
        "learning rate": Setting(0.05, "pylearn2"),
        "learning rate, divided at each update by": Setting(1.00004, "pylearn2"),
        "momentum": Setting(("linear", 0.5, 0.7, 0, 250), "pylearn2"),
        "patience, epochs": Setting(100, "pylearn2"),
        "max kernel norms": Setting((0.9, 1.9365, 1.9365, 1.9365), "paper A.2, pylearn2"),
        "then on all 60,000 images": Setting("without dropout", "pylearn2"),
        "test error": Setting(0.45, "pylearn2; paper, table 4: 0.55"),
    },
    "teachers": {
        "dropout keeps, of the input": Setting((0.8, "not rescaled"), "pylearn2"),
        "dropout keeps, before the other layers": Setting((0.5, "times 2"), "pylearn2"),
    },
    "CIFAR-10 teacher": {
        "learning rate": Setting(("linear", 0.17, 0.0017, 0, 500), "pylearn2"),
        "convolutions' share of the learning rate": Setting(0.05, "pylearn2"),
        "momentum": Setting(("linear", 0.5, 0.65, 0, 250), "pylearn2"),
        "epochs": Setting(474, "pylearn2"),
        "max kernel norms": Setting((0.9, 1.9365, 1.9365, 1.9, 1.9365), "pylearn2"),
    },
    "SVHN": {
        "training, extra and test images": Setting((73_257, 531_131, 26_032), "paper 3.2"),
        "validation images a class, from training and extra": Setting((400, 200), "pylearn2"),
        "preprocessing": Setting("global, then local contrast (7x7 Gaussian, threshold 1e-4)", "pylearn2"),
        "validation images are trained on in the end": Setting(False, "pylearn2"),
    },
    "SVHN teacher": {
        "learning rate": Setting(("linear", 0.2, 0.0002, 0, 250), "pylearn2"),
        "convolutions' share of the learning rate": Setting(0.05, "pylearn2"),
        "momentum": Setting(("linear", 0.5, 0.6, 0, 250), "pylearn2"),
        "patience, epochs": Setting(100, "pylearn2"),
        "max kernel norms": Setting((0.9, 1.9365, 1.9365, 1.9, 1.9365), "pylearn2"),
    },
    "AFLW": {
        "faces and other images": Setting((25_000, 25_000), "paper 3.4"),
        "share trained on": Setting(0.9, "paper 3.4"),
        "initial weights": Setting(("uniform", -0.05, 0.05), "paper A.4"),
        "momentum": Setting(("linear", 0.1, 0.9, 0, 100), "paper A.4"),
        "batch": Setting(128, "paper A.4"),
    },
}


@dataclass(frozen=True)
class Disagreement:
    """What the paper says, what its code (or another place in the paper) says, and what minifit does unless told."""

    point: str
    paper: str
    other: str
    default: str


DISAGREEMENTS = (
    Disagreement("pieces in layers 5 and 6 of the MNIST FitNet", "2", "released code: 4", "2, which gives the 30K"),
    Disagreement("pieces in layer 3 of the MNIST teacher", "2", "pylearn2: 4", "2, which gives the 361K"),
    Disagreement("pieces in fully connected maxout", "5", "published counts: 2", "5; counts are shown for both"),
    Disagreement("MNIST: lambda at the end", "1", "released code: 0", "1"),
    Disagreement("CIFAR: epoch at which lambda stops falling", "500", "released code: 400", "500"),
    Disagreement("temperature of the student in the KD term", "tau", "released code: in effect 1", "tau"),
    Disagreement("scale of the hint loss", "1/2 of the sum", "released code: divided by O_h N_h2", "1/2 of the sum"),
    Disagreement("MNIST student's optimiser", "SGD", "released code: RMSProp", "RMSProp; SGD at 5e-4 stays put"),
    Disagreement("CIFAR: convolutions at lr x 0.05; crops", "neither", "released code: both", "neither; flips only"),
    Disagreement("first block of FitNet 3", "32-48-64-64", "its counts: 64-64-64-64", "32-48-64-64"),
    Disagreement(
        "SVHN student",
        "13 layers, 1.5M (3.2, table 3)",
        "FitNet 4 (A.1.2, A.3)",
        "13 layers, 1.5M; hint from teacher layer 3",
    ),
    Disagreement(
        "guided layer of 11-layer nets", "6 (table 7)", "7 (table 6)", "6 for table 5, 7 for the depth series"
    ),
    Disagreement("AFLW students", "7 layers", "8 widths, same section", "7 layers"),
    Disagreement(
        "biases of convolutions", "not mentioned", "released code: one per position on MNIST", "one per channel"
    ),
)


@dataclass(frozen=True)
class Row:
    """A row of a table, and the experiment and the method by which minifit fills it.   published: None, it failed"""

    experiment: str
    method: str
    published: float | None
    about: str = ""


def _rows(experiment, published, about=None):
    return tuple(Row(experiment, method, value, (about or {}).get(method, "")) for method, value in published.items())


# The tables whose rows are results: whether they are accuracies, and the rows
_MLP = Row("mnist", "maxout", 0.94, "permutation-invariant; Goodfellow et al. 2013")
TABLES = {
    "Table 1. CIFAR-10, accuracy": (
        True,
        _rows(
            "cifar10-fitnet4", TABLE_1 | TABLE_1_OTHERS, {"mimic": "54M", "mimic-conv": "70M", "mimic-ensemble": "70M"}
        ),
    ),
    "Table 2. CIFAR-100, accuracy": (True, _rows("cifar100-fitnet4", TABLE_2 | TABLE_2_OTHERS)),
    "Table 3. SVHN, error": (False, _rows("svhn", TABLE_3 | TABLE_3_OTHERS)),
    "Table 4. MNIST, error": (
        False,
        (
            *_rows("mnist", TABLE_4),
            Row("mnist", "teacher", TABLE_4_OTHERS["maxout"], "maxout, convolutional: the teacher's network"),
            _MLP,
            *_rows("mnist", {name: TABLE_4_OTHERS[name] for name in ("nin", "dsn")}),
        ),
    ),
    "Table 5. CIFAR-10, accuracy": (
        True,
        (
            Row("cifar10-fitnet1", "teacher", TABLE_5_TEACHER["accuracy"]),
            *(
                Row(f"cifar10-{name.lower().replace(' ', '')}", "fitnet", row.accuracy, f"{name}, {row.weights}")
                for name, row in TABLE_5.items()
            ),
        ),
    ),
    "Figure 2. CIFAR-10, accuracy, by depth at a fixed number of multiplications": (
        True,
        tuple(
            Row(f"cifar10-{budget.lower()}-{layers}", method, points.get(method), f"{budget}, {layers} layers")
            for (budget, layers), points in FIGURE_2_POINTS.items()
            for method in ("backprop", "kd", "fitnet")
        ),
    ),
    "Section 3.1. CIFAR-10, accuracy, other uses of two stages": (
        True,
        _rows(
            "cifar10-fitnet4",
            dict.fromkeys(("labels-then-labels", "labels-then-kd", "joint-labels", "joint-hint")),
        ),
    ),
    "Section 3.4. AFLW, error; the paper's on AFLW's validation images, ours on a stand-in's test images": (
        False,
        (
            Row("faces", "teacher", AFLW["teacher"]),
            *_rows("faces", AFLW["FitNet 1"], dict.fromkeys(AFLW["FitNet 1"], "FitNet 1")),
            *_rows("faces-fitnet2", AFLW["FitNet 2"], dict.fromkeys(AFLW["FitNet 2"], "FitNet 2")),
        ),
    ),
}
