"""`dgn` with an actor of tests/fakes.py in place of the one that draws; all else is the real command.

python -m tests.fake_render ACTOR render RUN --targets ...
"""

import sys

from cluster import driver
from jobs import cli
from tests import fakes

if __name__ == "__main__":
    actor = getattr(fakes, sys.argv.pop(1))
    RealDriver = driver.Driver

    def fake_driver(run, info, context, weights, decoder, *others):
        """Without weights, which would have every worker import torch."""
        return RealDriver(run, info, context, None, None, *others, actor_class=actor)

    driver.Driver = fake_driver
    cli.main()
