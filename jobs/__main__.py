"""`dgn`, also as `python -m dgn.jobs`."""

from dgn.interrupts import listen


def main() -> None:
    """Entry point. Signals are heard before anything else is imported."""
    listen()

    from dgn.jobs import cli

    cli.main()


if __name__ == "__main__":
    main()
