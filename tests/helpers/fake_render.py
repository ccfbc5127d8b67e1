"""`dgn` with a worker of tests/helpers/fakes.py in place of the one that draws; all else is the real command.

python -m tests.helpers.fake_render WORKER render RUN --targets ...
"""

import os
import pickle
import sys
from pathlib import Path

from dgn.cluster import driver
from dgn.jobs.__main__ import main
from dgn.networks.registry import network_named
from tests.helpers import fakes

if __name__ == "__main__":
    worker_class = getattr(fakes, sys.argv.pop(1))
    RealDriver = driver.Driver

    def fake_driver(run, info, context, weights, decoder, *others):
        """Without weights, because every worker would import torch for them."""
        return RealDriver(run, info, context, None, None, *others, worker_class=worker_class)

    if file := os.environ.get("DGN_TEST_LAYERS"):  # else each process finds them anew, which imports PyTorch's compiler
        vars(network_named("vgg16-mini"))["layers"] = pickle.loads(Path(file).read_bytes())
    driver.Driver = fake_driver  # before `dgn.cluster.launch` is imported
    main()
