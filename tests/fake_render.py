"""`dgn` with an actor of tests/fakes.py in place of the one that draws; all else is the real command.

python -m tests.fake_render ACTOR render RUN --targets ...
"""

import functools
import sys

from cluster import driver
from jobs import cli
from tests import fakes

if __name__ == "__main__":
    actor = getattr(fakes, sys.argv.pop(1))
    driver.Driver = functools.partial(driver.Driver, actor_class=actor)
    cli.main()
