"""Peak memory of training every MNIST and CIFAR network, batch 128, the data set aside: python -m benchmarks.memory"""

import argparse

from benchmarks.contestants import Child, Minifit
from benchmarks.step import choose_networks, machine, table
from minifit.networks import NETWORKS

STEPS = 5  # after which it grows no more


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.partition(":")[0] + ".")
    choose_networks(parser, NETWORKS)
    options = parser.parse_args(arguments)
    print(machine(), flush=True)
    rows = [[network.name, *(f"{peak(network, count) / 2**20:.0f}" for count in (1, 2))] for network in options.network]
    print("\n" + table(["network", "1 worker, MiB", "2 workers, MiB"], rows))


def peak(network, count):
    with Child(Minifit, network, 128, network.microbatch, count) as ours:
        for _ in range(STEPS):
            ours("step")
        return ours("grown")


if __name__ == "__main__":
    main()
