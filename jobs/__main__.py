"""`python -m jobs`, the same as `dgn`."""

from jobs.cli import main

main()
