"""The experiments: one frozen Config each, every number with its source.

Sources: [2.2] a section of the paper, [A.1.2], [A.2] its appendix; [code] its released code; [PL] pylearn2's maxout
scripts, from which the teachers come; [set] the size of the data set; [ours] chosen here, on the validation images.
"""

from dataclasses import dataclass, field, replace

from minifit import UserError, networks, settings, spec
from minifit.optimizers import Ramp, Schedule
from minifit.settings import ABOVE_0, PROBABILITY, at_least, flag, one_of, setting, words

# The random streams of published seeds. The number of a stream is its place here, which must not change. A stage draws
# its noise and its order of images from the stream of its own name, so that any stage can run alone.
WEIGHTS = ("teacher weights", "student weights", "regressor weights")
STREAMS = (*WEIGHTS, "teacher", "backprop", "kd", "hint", "fitnet", "teacher_all")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of an experiment. A run directory holds the results of one Config, and refuses another.

    None: the value follows from other settings, as the help of the setting says.
    """

    train: int = setting("train on the first N training images", at_least(1), group="data", common=True, teacher=True)
    validation: int = setting(
        "choose the epoch by the last N training images",
        at_least(0),
        common=True,
        teacher=True,
    )
    test: int | None = setting("test on the first N test images; auto: all", at_least(1), teacher=True)
    retrain: bool = setting(
        "then train every stage again on training and validation images, for the epochs that were best"
    )
    preprocessing: str = setting(
        "unit: scale pixels to [0, 1]; whitened: normalise the contrast, then apply ZCA; local: normalise the "
        "contrast, then also locally; local-red: locally in red alone, as pylearn2 did in 2014",
        one_of("unit", "whitened", "local", "local-red"),
        teacher=True,
    )
    flips: bool = setting("mirror training images left-right with probability 1/2", teacher=True)
    crops: int = setting(
        "pad training images by this many pixels of zeros and cut out a random window of the old size",
        at_least(0),
        teacher=True,
    )

    teacher_width_scale: float = setting(
        "multiply the channels and units of the paper's teacher", ABOVE_0, group="networks", teacher=True
    )
    teacher_conv_lr_scale: float = setting(
        "multiply the learning rate of the teacher's convolutions", at_least(0), teacher=True
    )
    student_conv_lr_scale: float = setting("multiply the learning rate of the student's convolutions", at_least(0))
    dropout_keep_input: float = setting(
        "keep each input of the teacher with this probability in training; 1 = no dropout", PROBABILITY, teacher=True
    )
    dropout_keep: float = setting(
        "keep each input of the teacher's later layers with this probability in training", PROBABILITY, teacher=True
    )
    init: str = setting(
        "draw initial weights uniformly, or scale every layer's weights so that its outputs have variance 1",
        one_of("uniform", "scaled"),
    )
    init_range: float = setting("draw uniform initial weights from U(-X, X)", ABOVE_0)
    microbatch: int | None = setting(
        "on a CPU, compute N images at a time; another N changes how sums are rounded; auto: the network's own",
        at_least(1),
        default=None,
    )

    guided_layer: tuple[int, ...] = setting(
        "train the student up to layer N on the hint; several layers are trained in turn", group="hint", common=True
    )
    hint_layer: tuple[int, ...] = setting(
        "take the hint from layer N of the teacher; one per guided layer", common=True
    )
    regressor: str = setting(
        "map the guided layer to the hint by a convolution, a dense layer, or nothing", one_of("conv", "fc", "none")
    )
    regressor_pieces: int | None = setting(
        "give the regressor's maxout N pieces; 1 = a linear regressor; auto: as many as the hint layer", at_least(1)
    )
    regressor_init: str = setting(
        "draw the regressor's weights uniformly, or from a normal distribution of variance 1 / fan-in",
        one_of("uniform", "normal"),
    )
    regressor_init_range: float = setting("draw the regressor's uniform initial weights from U(-X, X)", ABOVE_0)
    regressor_max_norm: float = setting("scale each filter of the regressor down to this norm after an update", ABOVE_0)
    hint_reduction: str = setting(
        "sum the squared differences of eq. 3 over the features, or average them", one_of("sum", "mean")
    )
    guided_lr_scale: float = setting(
        "multiply the learning rate of the guided layers in the last stage of FitNet", at_least(0)
    )

    tau: float = setting(
        "soften outputs by temperature X; larger = softer",
        ABOVE_0,
        group="distillation",
        common=True,
    )
    student_tau: float | None = setting(
        "soften the student's outputs in eq. 2 by another temperature; auto: tau", ABOVE_0
    )
    lam: Ramp = setting("weigh the teacher against labels by X", at_least(0), common=True)

    teacher: Schedule = field(metadata={"group": "training", "teacher": True})
    stage1: Schedule  # the hint stage
    student: Schedule  # every stage that trains the whole student
    teacher_all: int = setting(
        "then train the teacher on all images without dropout, for at most this many epochs; 0 = skip",
        at_least(0),
        teacher=True,
    )
    targets_memory: int = setting(
        "keep the teacher's outputs for a set in memory and, on a CPU, its whitened images in a temporary file, where "
        "each takes at most N MiB; else compute them for each batch",
        at_least(0),
        default=1024,
    )


@dataclass(frozen=True)
class Experiment:
    """A data set, the two networks, and the presets: their settings by name."""

    data: str
    teacher: networks.Network
    student: networks.Network
    presets: dict[str, Config]
    others: dict[str, networks.Network] = field(default_factory=dict)  # by name: replace networks that methods bring


MNIST_PAPER = Config(
    train=50_000,  # [A.2]
    validation=10_000,  # [A.2]
    test=10_000,  # [set]
    retrain=False,  # [A.2]
    preprocessing="unit",  # [A.2]
    flips=False,  # [A.2]
    crops=0,  # [A.2]
    teacher_width_scale=1.0,  # [A.2]
    teacher_conv_lr_scale=1.0,  # [PL]
    student_conv_lr_scale=1.0,  # [A.2]: one rate
    dropout_keep_input=0.8,  # [PL]
    dropout_keep=0.5,  # [PL]
    init="uniform",  # [A.2]
    init_range=0.005,  # [A.2]
    guided_layer=(4,),  # [A.2]: the middle layer
    hint_layer=(2,),  # [A.2]: the middle layer
    regressor="conv",  # [A.2]
    regressor_pieces=None,  # [2.2]
    regressor_init="uniform",  # [code]
    regressor_init_range=0.05,  # [code]
    regressor_max_norm=0.9,  # [code]
    hint_reduction="sum",  # eq. 3; its code is near "mean"
    guided_lr_scale=1.0,  # [A.2]: one rate
    tau=3.0,  # [A.2]
    student_tau=None,  # eq. 1; its code: 1, in effect
    lam=Ramp(4.0, 1.0, 150),  # [A.2]; its code: Ramp(4.0, 0.0, 150, 5)
    # [PL]: the paper's teacher is pylearn2's maxout network. The limits of 500 epochs are [ours].
    teacher=Schedule("sgd", lr=0.05, lr_decay=1.00004, momentum=Ramp(0.5, 0.7, 250), epochs=500, patience=100),
    # [A.2], except RMSProp: the text says SGD, the code RMSProp, and SGD at this rate does not move from this start.
    stage1=Schedule("rmsprop", lr=0.0005, epochs=500, patience=100),
    student=Schedule("rmsprop", lr=0.0005, epochs=500, patience=100),  # as stage1
    teacher_all=500,  # [PL]; the limit is [ours]
)

# The paper's networks, losses and stages on a schedule of minutes. The settings here are [ours]; all others are those
# above. From U(-.005, .005) a few epochs are not enough. From a scaled start the networks train at once, although
# max-norm shrinks the filters of the first layers at the first update. Learning rates end near 0.
MNIST = replace(
    MNIST_PAPER,
    dropout_keep_input=1.0,  # the teacher has 0.47 % of validation errors; with 0.8, [PL], in 20 epochs 0.57 %
    init="scaled",
    regressor_init="normal",
    lam=Ramp(4.0, 1.0, 16),
    teacher=Schedule("rmsprop", lr=0.002, lr_scale=Ramp(1.0, 0.02, 20), epochs=20, patience=20),
    stage1=Schedule("rmsprop", lr=0.005, lr_scale=Ramp(1.0, 0.02, 8), epochs=8, patience=8),
    student=Schedule("rmsprop", lr=0.005, lr_scale=Ramp(1.0, 0.02, 16), epochs=16, patience=16),
    teacher_all=0,
)

# [ours]: for studies, a fifth of the training images and half of the default preset's epochs.
MNIST_SHORT = replace(
    MNIST,
    train=10_000,
    dropout_keep=1.0,
    lam=Ramp(4.0, 1.0, 8),
    teacher=Schedule("rmsprop", lr=0.002, lr_scale=Ramp(1.0, 0.02, 8), epochs=8, patience=8),
    stage1=Schedule("rmsprop", lr=0.005, lr_scale=Ramp(1.0, 0.02, 4), epochs=4, patience=4),
    student=Schedule("rmsprop", lr=0.005, lr_scale=Ramp(1.0, 0.02, 8), epochs=8, patience=8),
)

# [ours]: for a first run of a few minutes. The data are drawn here too.
DIGITS = replace(MNIST_SHORT, train=5_000, validation=1_000, test=5_000)

CIFAR10_PAPER = replace(
    MNIST_PAPER,
    train=40_000,  # [A.1.2]
    validation=10_000,  # [A.1.2]
    test=None,  # [set]: all 10,000, or as many as there are
    retrain=True,  # [A.1.2]
    preprocessing="whitened",  # [PL]
    flips=True,  # [A.1.2]; the teacher's too, [ours]
    crops=0,  # [A.1.2]; its code: 8
    teacher_conv_lr_scale=0.05,  # [PL]
    student_conv_lr_scale=1.0,  # [A.1.2]; its code: 0.05
    guided_layer=(6,),  # Table 7
    hint_layer=(2,),  # Table 7
    lam=Ramp(4.0, 1.0, 500),  # [A.1.2]; its code: from epoch 5 to 400
    # [PL], except that validation images choose among at most 500 epochs, as for the students; [PL] has found 474.
    teacher=Schedule(
        "sgd", lr=0.17, lr_scale=Ramp(1.0, 0.01, 500), momentum=Ramp(0.5, 0.65, 250), epochs=500, patience=100
    ),
    stage1=Schedule("rmsprop", lr=0.005, epochs=500, patience=100),  # [A.1.2]
    student=Schedule("rmsprop", lr=0.005, epochs=500, patience=100),  # as stage1
    teacher_all=0,  # [PL]; retraining takes its place
)

# For two CPU cores. The settings here are [ours], as for MNIST; the teacher is half as wide. All students share one
# learning rate. At twice this rate FitNet 4's loss grows in its first updates, which are RMSProp's largest.
CIFAR10 = replace(
    CIFAR10_PAPER,
    retrain=False,
    teacher_width_scale=0.5,
    teacher_conv_lr_scale=1.0,
    dropout_keep_input=1.0,
    dropout_keep=1.0,
    init="scaled",
    regressor_init="normal",
    lam=Ramp(4.0, 1.0, 10),
    teacher=Schedule("rmsprop", lr=0.0002, lr_scale=Ramp(1.0, 0.02, 12), epochs=12, patience=12),
    stage1=Schedule("rmsprop", lr=0.0005, lr_scale=Ramp(1.0, 0.02, 4), epochs=4, patience=4),
    student=Schedule("rmsprop", lr=0.0005, lr_scale=Ramp(1.0, 0.02, 10), epochs=10, patience=10),
)

# [A.1.2]: CIFAR-10's settings on all 50,000 images, so the last epoch counts. The paper does not give the number of
# epochs: here 500 for students, their limit on CIFAR-10, and 474 for the teacher, from [PL].
CIFAR100_PAPER = replace(
    CIFAR10_PAPER,
    train=50_000,  # [A.1.2]
    validation=0,  # [A.1.2]
    retrain=False,
    teacher=replace(CIFAR10_PAPER.teacher, epochs=474),
)


def cifar10(student, guided):
    """An experiment on CIFAR-10 in which the student's layer `guided` learns from the teacher's second."""
    presets = {"default": CIFAR10, "paper": CIFAR10_PAPER}
    presets = {name: replace(preset, guided_layer=(guided,)) for name, preset in presets.items()}
    return Experiment("cifar10", networks.CIFAR10_TEACHER, student, presets)


def depth(student, guided):
    """An experiment of Figure 2; its networks are not trained again on all images [A.1.2]."""
    experiment = cifar10(student, guided)
    paper = replace(experiment.presets["paper"], retrain=False)
    return replace(experiment, presets=experiment.presets | {"paper": paper})


def cifar100(student, guided):
    """An experiment on CIFAR-100 in which the student's layer `guided` learns from the teacher's second."""
    presets = {"default": CIFAR10, "paper": CIFAR100_PAPER}
    presets = {name: replace(preset, guided_layer=(guided,)) for name, preset in presets.items()}
    return Experiment("cifar100", networks.CIFAR100_TEACHER, student, presets)


SVHN_PAPER = replace(
    CIFAR10_PAPER,  # [A.1.2]: the students' settings are CIFAR-10's
    train=598_388,  # [3.2], [PL]: all but the 6,000 for validation
    validation=6_000,  # [PL]: 400 of each class from the training file, 200 from the extra one
    retrain=False,  # [PL]: the validation images are never trained on
    preprocessing="local",  # [PL], of 2013; "local-red" is that of 2014
    flips=False,  # [PL]
    guided_layer=(8,),  # [ours], with the next: the paper has no pair, and the teacher's layer 2 has too large a map
    hint_layer=(3,),
    teacher=Schedule(  # [PL], except for the limit, which is the students'
        "sgd", lr=0.2, lr_scale=Ramp(1.0, 0.001, 250), momentum=Ramp(0.5, 0.6, 250), epochs=500, patience=100
    ),
)

# For two CPU cores, as CIFAR10. A thirtieth of the images; their order is random, so both files have their share.
SVHN = replace(
    CIFAR10,
    train=20_000,
    validation=6_000,
    preprocessing="local",
    flips=False,
    guided_layer=(8,),
    hint_layer=(3,),
)

# Where the paper says nothing of AFLW, settings are MNIST's, or [ours]: optimiser, learning rate, limits, pixels.
AFLW_PAPER = replace(
    MNIST_PAPER,
    train=33_633,  # [3.4]: nine tenths, of which a tenth validates; `fitted` adapts both to the file
    validation=3_737,
    test=None,  # [3.4]: the last tenth
    dropout_keep_input=1.0,  # [A.4]: none is mentioned
    dropout_keep=1.0,
    init_range=0.05,  # [A.4]
    guided_layer=(5,),  # [A.4]
    hint_layer=(3,),  # [A.4]
    lam=Ramp(4.0, 1.0, 500),  # [A.1.2]
    teacher=Schedule("sgd", lr=0.01, momentum=Ramp(0.1, 0.9, 100), epochs=500, patience=100),  # momentum: [A.4]
    stage1=Schedule("sgd", lr=0.01, momentum=Ramp(0.1, 0.9, 100), epochs=500, patience=100),  # as the teacher
    student=Schedule("sgd", lr=0.01, momentum=Ramp(0.1, 0.9, 100), epochs=500, patience=100),
    teacher_all=0,
)

# The same networks on a schedule of minutes. The settings here are [ours], as for MNIST.
AFLW = replace(
    AFLW_PAPER,
    init="scaled",
    regressor_init="normal",
    lam=Ramp(4.0, 1.0, 12),
    teacher=Schedule("rmsprop", lr=0.0002, lr_scale=Ramp(1.0, 0.02, 8), epochs=8, patience=8),
    stage1=Schedule("rmsprop", lr=0.001, lr_scale=Ramp(1.0, 0.02, 6), epochs=6, patience=6),
    student=Schedule("rmsprop", lr=0.001, lr_scale=Ramp(1.0, 0.02, 12), epochs=12, patience=12),
)

# [ours]: for the user's own data set, as for MNIST; `of_own` adapts the sizes and pairs the middle layers.
OWN = replace(
    MNIST,
    test=None,
    dropout_keep=1.0,
    lam=Ramp(4.0, 1.0, 16),
    teacher=Schedule("rmsprop", lr=0.001, lr_scale=Ramp(1.0, 0.02, 16), epochs=16, patience=16),
    stage1=Schedule("rmsprop", lr=0.001, lr_scale=Ramp(1.0, 0.02, 6), epochs=6, patience=6),
    student=Schedule("rmsprop", lr=0.001, lr_scale=Ramp(1.0, 0.02, 16), epochs=16, patience=16),
)
OWN_STUDENT, OWN_TEACHER = "16-16-16/32-32-32/48-48-64", "96-192-192"
VALIDATION_SHARE, MOST_VALIDATION = 10, 10_000  # [ours]: of the training images of a file


def fitted(experiment, data):
    """Returns the experiment adapted to the user's data set: its channels and its number of validation images."""
    channels = data.images.shape[3]
    nets = {
        name: replace(network, input=(*network.input[:2], channels))
        for name, network in (("teacher", experiment.teacher), ("student", experiment.student))
    }
    return sized(replace(experiment, **nets), data)


def sized(experiment, data):
    """Returns the experiment with a tenth of the training images for validation, rounded up to whole groups."""
    total = len(data.images)
    validation = max(1, min(MOST_VALIDATION, total // VALIDATION_SHARE))
    if data.groups is not None:
        while validation < total - 1 and data.groups[-validation] == data.groups[-validation - 1]:
            validation += 1
    sizes = {"train": total - validation, "validation": validation}
    return replace(experiment, presets={name: replace(p, **sizes) for name, p in experiment.presets.items()})


def of_own(data, student, teacher):
    """Returns the experiment on the user's data set, with networks built from these SPECs."""
    image, classes = data.images.shape[1:], int(data.labels.max()) + 1
    student, teacher = (spec.network(*of, image, classes) for of in (("student", student), ("teacher", teacher)))
    guided, hint, regressor = spec.pair(student, teacher)
    preset = replace(OWN, guided_layer=(guided,), hint_layer=(hint,), regressor=regressor)
    return sized(Experiment("own", teacher, student, {"default": preset}), data)


def faces(student):
    """An experiment on faces."""
    return Experiment("faces", networks.AFLW_TEACHER, student, {"default": AFLW, "paper": AFLW_PAPER})


EXPERIMENTS = {
    "mnist": Experiment(
        "mnist",
        networks.MNIST_TEACHER,
        networks.MNIST_FITNET,
        {"default": MNIST, "paper": MNIST_PAPER, "short": MNIST_SHORT},
    ),
    "digits": Experiment(
        "digits",
        networks.MNIST_TEACHER,
        networks.MNIST_FITNET,
        {
            "default": DIGITS,
            "paper": replace(MNIST_PAPER, train=5_000, validation=1_000, test=5_000),  # [ours]
            "short": DIGITS,
        },
        # [ours]: half as wide, so that all methods together take minutes
        {
            "nin": networks.widened(networks.nin_mnist(), 0.5),
            "dsn": networks.widened(networks.nin_mnist(relu=False), 0.5),
        },
    ),
    # Table 5, the guided layers of Table 7
    "cifar10-fitnet1": cifar10(networks.FITNET_1, 6),
    "cifar10-fitnet2": cifar10(networks.FITNET_2, 6),
    "cifar10-fitnet3": cifar10(networks.FITNET_3, 8),
    "cifar10-fitnet4": cifar10(networks.FITNET_4, 11),
    # Table 2 is of the last of these
    "cifar100-fitnet1": cifar100(networks.FITNET_1_100, 6),
    "cifar100-fitnet2": cifar100(networks.FITNET_2_100, 6),
    "cifar100-fitnet3": cifar100(networks.FITNET_3_100, 8),
    "cifar100-fitnet4": cifar100(networks.FITNET_4_100, 11),
    # Figure 2, the guided layers of Table 6, where the networks of 11 layers are FitNets 1 and 2 with another
    "cifar10-30m-5": depth(networks.DEPTH_30M[0], 2),
    "cifar10-30m-7": depth(networks.DEPTH_30M[1], 4),
    "cifar10-30m-9": depth(networks.DEPTH_30M[2], 5),
    "cifar10-30m-11": depth(networks.DEPTH_30M[3], 7),
    "cifar10-107m-5": depth(networks.DEPTH_107M[0], 2),
    "cifar10-107m-7": depth(networks.DEPTH_107M[1], 4),
    "cifar10-107m-9": depth(networks.DEPTH_107M[2], 5),
    "cifar10-107m-11": depth(networks.DEPTH_107M[3], 7),
    # Table 3
    "svhn": Experiment(
        "svhn",
        networks.SVHN_TEACHER,
        networks.SVHN_FITNET,
        {"default": SVHN, "paper": SVHN_PAPER},
        {"nin": networks.nin_svhn(), "dsn": networks.nin_svhn(relu=False)},
    ),
    # Section 3.4; the user's file decides the channels
    "faces": faces(networks.AFLW_FITNET_1),
    "faces-fitnet2": faces(networks.AFLW_FITNET_2),
    # The user's file and two SPECs decide the networks; these are those of an example
    "own": Experiment(
        "own",
        spec.network("teacher", OWN_TEACHER, (32, 32, 3), 10),
        spec.network("student", OWN_STUDENT, (32, 32, 3), 10),
        {"default": replace(OWN, guided_layer=(5,))},
    ),
}


@dataclass(frozen=True)
class Study:
    """A question and its arms: {name of an arm: the settings in which it differs from the preset `short`}."""

    question: str
    arms: dict[str, dict]
    goals: tuple[str, ...] = ("all",)  # the methods that are trained for it
    more: int = 0  # seeds beyond those of the other studies


# One setting is changed at a time. Only validation errors choose between arms.
STUDIES = (
    Study(
        "The student's initial weights",
        {"scaled": {}, "U(+-.005), paper": {"init": "uniform"}},
        more=2,  # for an interval: two pairs decide little
    ),
    Study(
        "Guided layer",  # its maps: 10x10, 12x12, 4x4 and 8x8; a hint of 4x4 fits no other layer
        {"2": {"guided_layer": (2,)}, "3": {"guided_layer": (3,)}, "4, paper": {}, "5": {"guided_layer": (5,)}},
        ("fitnet",),
    ),
    Study("tau", {"1": {"tau": 1.0}, "3, paper": {}, "10": {"tau": 10.0}}, ("kd", "fitnet")),
    Study(
        "lambda",
        {
            "4 to 1, paper": {},
            "4 throughout": {"lam": Ramp(4.0)},
            "1 throughout": {"lam": Ramp(1.0)},
            "0, no teacher": {"lam": Ramp(0.0)},
        },
        ("kd", "fitnet"),
    ),
    Study("The student's tau in eq. 2", {"tau, paper": {}, "1, released code": {"student_tau": 1.0}}, ("kd", "fitnet")),
    Study(
        "Hint loss, scaled start", {"sum, eq. 3": {}, "mean, released code": {"hint_reduction": "mean"}}, ("fitnet",)
    ),
    Study(
        "Hint loss, U(+-.005)",
        {"sum, eq. 3": {"init": "uniform"}, "mean, released code": {"init": "uniform", "hint_reduction": "mean"}},
        ("fitnet",),
    ),
    Study("Regressor", {"maxout, paper": {}, "linear": {"regressor_pieces": 1}}, ("fitnet",)),
)


def check(experiment, config):
    """Raises UserError for settings that make no sense together."""
    for name, f, value in settings.walk(config):
        settings.check(name, f, value)
    for name, network in (("guided_layer", experiment.student), ("hint_layer", experiment.teacher)):
        last = len(network.blocks) - 1
        for layer in getattr(config, name):
            if not 1 <= layer <= last:
                raise UserError(f"{flag(name)} {layer}: wanted one of the layers 1..{last} below the output")
    if not config.guided_layer or len(config.guided_layer) != len(config.hint_layer):
        given = (f"{flag(name)} {' '.join(words(getattr(config, name)))}" for name in ("guided_layer", "hint_layer"))
        raise UserError(f"{' and '.join(given)}: wanted pairs, the same number of layers for both")
    if config.teacher_width_scale != 1 and not isinstance(experiment.teacher, networks.Network):
        raise UserError("--teacher-width-scale: --teacher names a trained teacher, which has its width; leave it out")
    side = min(experiment.student.input[:2])
    if config.crops >= side:
        raise UserError(f"--crops {config.crops}: wanted 0 to {side - 1} pixels")
    if config.retrain and not config.validation:
        raise UserError("--retrain: wanted validation images, from which it takes the number of epochs")
