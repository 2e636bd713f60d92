"""minifit: train the FitNets of Romero et al. (ICLR 2015), compare methods, and audit every gradient.

python run.py digits                   train all stages on digits that minifit draws itself, in minutes
python run.py mnist --stage hint       train stage 1 of Algorithm 1 on MNIST, and the teacher that it needs
python run.py mnist --preset paper     use the paper's settings: up to 500 epochs per stage
python run.py cifar10-fitnet1          train on CIFAR-10; the other experiments are listed below
python run.py compare mnist --seeds 5  train all stages for each seed, and compare the methods over the seeds
python run.py compare RUN RUN ...      compare run directories that exist
python run.py results mnist            make the pages and pictures of results/mnist again, from the records
python run.py networks                 count the weights and multiplications of the paper's networks
python run.py audit                    check every gradient against the derivative of its forward pass
python run.py mnist --help             show the common settings; --help-all shows all
"""

import os
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:

    def stop(*_):
        """What Ctrl-C does during the imports, which take a second; later, the command line's own handler answers."""
        os.write(1, b"\nstopped; nothing had begun\n")
        os._exit(130)

    signal.signal(signal.SIGINT, stop)

from minifit.lab import cli


def main(arguments):
    return cli.main(arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
