"""One simulated run again: what happened and what the schedule decided, with the fewest faults that still break it.

python -m tests.helpers.simulate --seed N
python -m tests.helpers.simulate --seed N --spared 0,1,5    # these faults do not strike
"""

import sys
import traceback
from typing import Annotated

import typer

from dgn.cluster.schedule import Schedule
from tests.helpers.simulated_run import SimulatedRun


def failure(seed, schedule_class=Schedule, spared=frozenset()):
    """What is wrong with a run, and the numbers of the faults that struck it. None: nothing is wrong."""
    run = SimulatedRun(seed, schedule_class, spared)
    try:
        run.finish()
    except Exception as error:  # a broken schedule may raise anything
        return in_words(error), set(run.cluster.struck) - spared
    return None


def in_words(error):
    """With the line that failed, since most assertions have no message."""
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__}: {str(error) or line}"


def fewest_faults(seed, schedule_class=Schedule):
    """The faults to spare, so that the run still fails and would not with one fault less: blocks first, then singly."""
    spared = frozenset()
    _, left = failure(seed, schedule_class)
    size = len(left)
    while size:
        has_shrunk = False
        for start in range(0, len(left), size):
            without = spared | set(sorted(left)[start : start + size])
            if found := failure(seed, schedule_class, without):
                spared, left, has_shrunk = without, found[1], True
                break
        if not has_shrunk:
            size //= 2
    return spared


def explained(seed, schedule_class=Schedule):
    """A message about a run that fails: the error with the fewest faults, these faults, and the command to see more."""
    spared = fewest_faults(seed, schedule_class)
    run = SimulatedRun(seed, schedule_class, spared)
    try:
        run.finish()
    except Exception as error:
        what = in_words(error)
    faults = "\n".join(f"    {number}: {about}" for number, about in run.cluster.struck.items() if number not in spared)
    return f"seed {seed}: {what}; with these faults alone:\n{faults}\n{command(seed, spared)} shows every step"


def command(seed, spared):
    numbers = ",".join(map(str, sorted(spared)))
    return f"python -m tests.helpers.simulate --seed {seed}" + (f" --spared {numbers}" if spared else "")


def main(
    seed: Annotated[int, typer.Option(help="Which run.")],
    spared: Annotated[str, typer.Option(help="Numbers of faults that do not strike, with commas.")] = "",
) -> None:
    if not spared and failure(seed):
        spared = ",".join(map(str, sorted(fewest_faults(seed))))
    chosen = frozenset(int(number) for number in spared.split(",") if number)
    run = SimulatedRun(seed, spared=chosen, tell=print)
    try:
        run.finish()
        print(f"seed {seed} ends well")
    except AssertionError as error:
        print(f"seed {seed} fails: {in_words(error)}")
        sys.exit(1)
    finally:
        print("faults that struck:")
        for number, about in run.cluster.struck.items():
            if number not in chosen:
                print(f"  {number}: {about}")


if __name__ == "__main__":
    typer.run(main)
