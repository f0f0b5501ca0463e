"""The doors of the commands: what torch's threads need is said before torch is loaded."""

import os


def _settle() -> None:
    """Lets OpenMP's threads sleep while they wait; what the user has set stays.

    They spin otherwise, and two programs on one machine take each other's cores: docs/performance.md.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


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
