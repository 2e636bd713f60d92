"""Peak memory of training every MNIST and CIFAR network, batch 128, the data set aside: python -m benchmarks.memory"""

from benchmarks.contestants import Child, Minifit
from benchmarks.step import machine, table
from minifit.networks import NETWORKS

STEPS = 5  # after which it grows no more


def main():
    print(machine(), flush=True)
    rows = [[network.name, *(f"{peak(network, count) / 2**20:.0f}" for count in (1, 2))] for network in NETWORKS]
    print("\n" + table(["network", "1 worker, MiB", "2 workers, MiB"], rows))


def peak(network, count):
    with Child(Minifit, network, 128, network.slice, count) as ours:
        for _ in range(STEPS):
            ours("step")
        return ours("grown")


if __name__ == "__main__":
    main()
