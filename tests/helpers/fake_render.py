"""`dgn` with a worker of tests/helpers/fakes.py in place of the one that draws; all else is the real command.

python -m tests.helpers.fake_render WORKER render RUN --targets ...
"""

import sys

from dgn.cluster import driver
from dgn.jobs import cli
from tests.helpers import fakes

if __name__ == "__main__":
    worker_class = getattr(fakes, sys.argv.pop(1))
    RealDriver = driver.Driver

    def fake_driver(run, info, context, weights, decoder, *others):
        """Without weights, because every worker would import torch for them."""
        return RealDriver(run, info, context, None, None, *others, worker_class=worker_class)

    driver.Driver = fake_driver  # before `dgn.cluster.launch` is imported
    cli.main()
