"""What the tests of exported networks share: a small network in a stage's file, images, and the command line."""

import numpy as np

from minifit import files, networks
from minifit.data.preprocessing import Unit
from minifit.lab import cli
from minifit.model import Model, describe

IMAGE = 12, 11, 1


def drawn(network, seed=1):
    layers = networks.build(network)
    networks.initialise(layers, np.random.default_rng(seed))
    return layers


def small(image=IMAGE, classes=3, seed=1):
    """Maxouts, pooling beyond the border, and a fully connected layer."""
    blocks = networks.Conv(4, 3, pool=(3, 2)), networks.FullyConnected(6, pieces=3), networks.Output(classes)
    return drawn(networks.Network("small", image, blocks), seed)


def model_of(layers, image=IMAGE, prepare=None, name="small"):
    return Model(layers, prepare or Unit(), describe(layers, name, image, prepare or Unit()))


def saved(path, layers=None, image=IMAGE, **more):
    layers = layers or small(image)
    about = describe(layers, "small", image, Unit(), **more)
    files.save(path, {"identity": {}, "network": about}, best=dict(layers.params))
    return path


def pictures(n, image=IMAGE, seed=2):
    return np.random.default_rng(seed).integers(0, 256, (n, *image)).astype(np.uint8)


def command(capsys, *words):
    """(exit status, what is printed, the lines of complaint) of a command line."""
    capsys.readouterr()
    status = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, *words):
    """The one line with which a command is refused."""
    status, out, err = command(capsys, *words)
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("run.py: "), (status, out, err)
    return err
