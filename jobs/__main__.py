"""`python -m dgn.jobs`, the same as `dgn`."""

from dgn.jobs.cli import main

main()
