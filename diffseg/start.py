"""The doors of the commands: what torch's threads and memory need is said before torch is loaded."""

import os


def _settle() -> None:
    """Lets OpenMP's threads sleep while they wait and torch ask for large pages; what the user has set stays.

    Threads spin otherwise, and two programs on one machine take each other's cores. Of small pages an image needs
    70,000, which the system clears one by one: docs/performance.md.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def segment() -> None:
    """The command `diffseg`."""
    _settle()
    from diffseg.cli import main

    main()


def evaluate() -> None:
    """The command `diffseg-eval`."""
    _settle()
    from diffseg.eval.run import main

    main()
