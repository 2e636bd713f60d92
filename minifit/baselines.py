"""The other systems of the paper's tables, its ablations and its curriculum, one function each; the list of methods.

Sources: [P 3.1] section 3.1 of the paper, [BC] Ba and Caruana 2014, [NiN] Lin et al. 2014, [DSN] Lee et al. 2015 and
their code, [MX] Goodfellow et al. 2013. Numbers without a source are chosen here. Methods train with the student's
schedule, unless they say otherwise, so all of them are compared at equal effort.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from minifit import fitnets, greedy, networks
from minifit.backend import array_module, to_host
from minifit.composites import Branches, Mean, Sequential
from minifit.fitnets import LABELS, Loss, Method, Stage, eq_2, eq_3, trained_teacher
from minifit.layers import Log, Scale, Softmax
from minifit.losses import hint_loss, log_softmax, squared_hinge
from minifit.optimizers import Ramp

MEMBERS = 3  # the teachers of an ensemble; [BC] has 4
ALWAYS = Ramp(1.0)


def trained_teachers(task, train, members=MEMBERS):
    """Trains several teachers that differ in their initial weights and their order of images; returns their list."""
    return [trained_teacher(task, train, "teacher" if i == 1 else f"teacher_{i}") for i in range(1, members + 1)]


def mimic(task, train, name="mimic", wide=False, members=1):
    """Trains a mimic net [BC] by least squares on the teacher's logits: one hidden layer behind a linear bottleneck."""
    teachers = trained_teachers(task, train, members)
    teacher = Mean(teachers) if members > 1 else teachers[0]
    layers, loss = in_units_of(task, teacher, task.network(*mimic_net(task, wide)))
    train(Stage(name, layers, loss, task.settings.student, teacher, of=mimic_net(task, wide)[0]))


def mimic_labels(task, train):
    """Trains the mimic net on labels only."""
    name, network = mimic_net(task)
    train(Stage("mimic-labels", task.network(name, network), LABELS, task.settings.student, of=name))


def kd_ensemble(task, train, members=MEMBERS, average="logits"):
    """Trains the student on eq. 2 with an ensemble: averages its logits a_T or, for another `average`, its P_T."""
    teachers, tau = trained_teachers(task, train, members), task.settings.tau
    mean = Mean(teachers if average == "logits" else [Sequential([teacher, Softmax(tau)]) for teacher in teachers])
    target = mean if average == "logits" else Sequential([mean, Log(tau)])  # logits from which eq. 1 gives this P_T
    train(Stage("kd-ensemble", task.network("student"), eq_2(task), task.settings.student, target))


def nin(task, train):
    """Trains network in network [NiN] on labels."""
    layers = task.network("nin", brought(task, networks.nin_mnist, networks.nin_cifar))
    train(Stage("nin", layers, LABELS, slower(task), of="nin"))


def dsn(task, train, weight=None, gamma=0.0):
    """Trains network in network with a companion loss on each convolution, before its ReLU: deeply-supervised [DSN].

    weight: a Ramp, the weight of the companion losses. [DSN] has .1 (1 - t / N), the default; its code has 1 for a
    quarter of the epochs and then 0, Ramp(1.0, 0.0, N / 4, N / 4).
    gamma: a companion's cost for an image counts only above this; [DSN] gives no value
    """
    layers = task.network("dsn", brought(task, networks.nin_mnist, networks.nin_cifar, relu=False))
    network, s = task.networks["dsn"], slower(task)
    depths = [i for i, block in enumerate(network.blocks, start=1) if isinstance(block, networks.Conv)]
    few = network.blocks[-1].classes <= 10  # for more, its code has softmax: there the squared hinge does not converge
    costs = (SquaredHinge(gamma), SquaredHinge()) if few else (LABELS, LABELS)
    weight = weight or Ramp(0.1, 0.0, task.settings.student.epochs)
    deeply_supervised(task, train, "dsn", "dsn", layers, depths, costs, weight, s, lr_scale=0.001)  # its code's


def dsn_student(task, train):
    """Trains the student with a companion loss on every layer; their weight falls from 1 to 0. Table 1's 88.2 %."""
    student, s = task.network("student"), task.settings.student
    depths, weight = range(1, len(student)), Ramp(1.0, 0.0, s.epochs)
    deeply_supervised(task, train, "dsn-student", "student", student, depths, (LABELS, LABELS), weight, s)


def maxout(task, train):
    """Trains a maxout network [MX] on labels: for grey images the permutation-invariant one, else the teacher's."""
    network = task.networks["teacher"]
    if network.input[2] == 1:
        network = networks.for_images(networks.maxout_dense(classes_of(task)), network.input)
    layers = task.network("maxout", network, as_teacher=True)
    train(Stage("maxout", layers, LABELS, task.settings.teacher, of="maxout"))


def labels_then_labels(task, train):
    """Ablation 1 [P 3.1]: labels up to the guided layer, then labels."""
    student = guided_by_labels(task, train)
    train(Stage("labels-then-labels", student, LABELS, task.settings.student))


def labels_then_kd(task, train):
    """Ablation 2 [P 3.1]: labels up to the guided layer, then eq. 2."""
    student, teacher = guided_by_labels(task, train), trained_teacher(task, train)
    train(Stage("labels-then-kd", student, eq_2(task), task.settings.student, teacher))


def joint_labels(task, train):
    """Ablation 3 [P 3.1]: labels at the guided layer and at the output, at once."""
    s = task.settings
    about = "joint-labels", "student", task.network("student"), s.guided_layer, (LABELS, LABELS), ALWAYS, s.student
    deeply_supervised(task, train, *about)


def joint_hint(task, train):
    """Ablation 4 [P 3.1]: eq. 3 at the guided layer and eq. 2 at the output, at once."""
    teacher, student, (g, h) = trained_teacher(task, train), task.network("student"), max(task.pairs)
    network = Branches(student, {g: task.regressor(student[:g], teacher[:h])})
    target, loss = Branches(teacher, {h: Sequential([])}), Outputs("eqs. 2 and 3", (eq_3(task), eq_2(task)))
    train(Stage("joint-hint", network, loss, task.settings.student, target))


METHODS = (  # in the order in which they are listed everywhere
    *fitnets.TABLE_4,
    Method("mimic", "mimic net", "mimic", mimic),
    Method("mimic-conv", "mimic net, convolutional", "mimic conv", partial(mimic, name="mimic-conv", wide=True)),
    Method(
        "mimic-ensemble",
        "mimic net, of an ensemble",
        "mimic ens.",
        partial(mimic, name="mimic-ensemble", wide=True, members=MEMBERS),
    ),
    Method("mimic-labels", "mimic net, on labels", "mimic labels", mimic_labels),
    Method("kd-ensemble", "distillation of an ensemble", "KD ens.", kd_ensemble),
    Method("nin", "network in network", "NiN", nin),
    Method("dsn", "deeply-supervised net", "DSN", dsn),
    Method("dsn-student", "student, deeply supervised", "DSN student", dsn_student),
    Method("maxout", "maxout network", "maxout", maxout),
    *greedy.LAYERWISE,
    Method("labels-then-labels", "labels, then labels", "labels+labels", labels_then_labels),
    Method("labels-then-kd", "labels, then distillation", "labels+KD", labels_then_kd),
    Method("joint-labels", "labels at two depths at once", "joint labels", joint_labels),
    Method("joint-hint", "hint and distillation at once", "joint hint", joint_hint),
)


def deeply_supervised(task, train, name, of, layers, depths, costs, weight, schedule, lr_scale=1.0):
    """Trains layers with a linear classifier at each of these depths, and discards the classifiers.

    costs: (the loss of each classifier, the loss of the output)    weight: of each classifier's loss, a Ramp
    lr_scale: factor of the classifiers' learning rate
    """
    heads = {i: task.head(layers[:i], f"{name} head weights", i) for i in depths}
    for head in heads.values():
        head.lr_scale = lr_scale
    loss = Outputs("labels, at several depths", (*[costs[0]] * len(heads), costs[1]), weight)
    train(Stage(name, Branches(layers, heads), loss, schedule, of=of))


def guided_by_labels(task, train):
    """Trains the student up to its guided layer on labels, and returns it: the first stage of ablations 1 and 2."""
    student, g = task.network("student"), max(task.settings.guided_layer)
    classifier = student[:g] + task.head(student[:g], "guided head weights")
    part = f", layers 1-{g}, and classifier"
    train(Stage("guided-labels", classifier, LABELS, task.settings.stage1, part=part))
    return student


def classes_of(task):
    return task.networks["student"].blocks[-1].classes


def brought(task, mnist, cifar, **settings):
    """Returns the network that a method brings with it, in its version for the task's images and classes."""
    image = task.networks["student"].input
    network = (cifar if image[2] == 3 else mnist)(classes_of(task), **settings)
    return networks.for_images(network, image)


def mimic_net(task, wide=False):
    """Returns (its name in the task, a mimic net), on CIFAR those of Table 1: 54M weights or, `wide`, 70M.

    On MNIST it is about as large as the FitNet: 32L-120 or, `wide`, with a convolution, 8c-16L-200.
    """
    mnist = (16, 200, 8) if wide else (32, 120)
    network = brought(
        task,
        lambda classes: networks.mimic((28, 28, 1), classes, *mnist),
        partial(networks.mimic_cifar, 128 if wide else 64),
    )
    return "wide mimic net" if wide else "mimic net", network


def slower(task):
    """Returns the student's schedule with RMSProp at a rate that trains network in network from a scaled start.

    [NiN] trains for hundreds of epochs by SGD, momentum .9 and rate .1, from initial weights N(0, .05).
    """
    return replace(task.settings.student, optimizer="rmsprop", lr=0.0005)


def in_units_of(task, teacher, layers):
    """Returns (layers, loss) for logits that start with the teacher's means and standard deviations.

    The means and deviations are measured on the images of a scaled start. They become a last layer that never learns.
    """
    shape, spread = classes_of(task), ()
    scale, shift = task.xp.ones(shape, task.dtype), task.xp.zeros(shape, task.dtype)
    if task.draw:
        logits = teacher(task.xp.asarray(task.images).astype(task.dtype, copy=False))
        deviation = logits.std(axis=0)
        scale[...] = task.xp.where(deviation > 0, deviation, 1)
        shift[...] = logits.mean(axis=0)
        spread = tuple(to_host(scale).tolist())
    units = Scale(scale, shift)
    units.lr_scale = 0.0
    return layers + units, Mimic(spread)


@dataclass(frozen=True)
class Mimic(Loss):
    """1/2 ||(a_S - a_T) / spread||^2, where spread is the standard deviation of a_T per class.   [BC, eq. 1]"""

    title: ClassVar[str] = "L2 on logits"
    spread: tuple[float, ...]

    def __call__(self, logits, teacher_logits, labels, epoch):
        spread = array_module(logits).asarray(self.spread, dtype=logits.dtype)
        loss, d = hint_loss(logits / spread, teacher_logits / spread)
        return loss, d / spread


@dataclass(frozen=True)
class SquaredHinge(Loss):
    """Each class against the rest [DSN]."""

    title: ClassVar[str] = "squared hinge"
    gamma: float = 0.0

    def __call__(self, logits, target, labels, epoch):
        return squared_hinge(logits, labels, self.gamma)


@dataclass(frozen=True)
class Outputs(Loss):
    """The loss of a network with several outputs: the last output's loss, plus `weight` times each other one's."""

    title: str
    losses: tuple[Loss, ...]
    weight: Ramp = ALWAYS

    def __call__(self, predictions, targets, labels, epoch):
        targets = targets or (None,) * len(self.losses)
        weights = (self.weight(epoch),) * (len(self.losses) - 1) + (1.0,)
        total, slopes = 0.0, []
        for loss, weight, y, target in zip(self.losses, weights, predictions, targets, strict=True):
            value, d = loss(y, target, labels, epoch)
            total, slopes = total + weight * value, [*slopes, weight * d]
        return total, tuple(slopes)

    def figures(self, epoch):
        return self.losses[-1].figures(epoch)


def pull(teacher_logits, tau):
    """Returns the size of each example's gradient at a student that knows nothing: the curriculum of section 2.4.

    teacher_logits (N, K)    (N,), (N,): the teacher's confidence max_k P_T, and |dH(P_T^tau, P_S^tau)/da_S|

    The gradient is (P_S^tau - P_T^tau) / tau with P_S^tau = 1 / K. It grows with the teacher's confidence.
    """
    xp = array_module(teacher_logits)
    confidence, soft = (xp.exp(log_softmax(teacher_logits / t)) for t in (1.0, tau))
    error = soft - 1 / soft.shape[1]
    return confidence.max(axis=1), xp.sqrt((error * error).sum(axis=1)) / tau
