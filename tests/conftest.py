"""What all test files share."""

import pytest

from tests.fresh import Commands


@pytest.fixture(scope="session")
def commands():
    """Runs commands in processes of their own that need not import libraries: see `tests.fresh`."""
    commands = Commands()
    yield commands
    commands.close()
