"""What all test files share."""

import pytest

from tests.fresh import Commands
from tests.hub import Hub


@pytest.fixture(scope="session")
def commands():
    """Runs commands in processes of their own that need not import libraries: see `tests.fresh`."""
    commands = Commands()
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def on_hub(tmp_path_factory):
    """(a hub on localhost, to which tests add repositories; commands for which it is the hub, and with a cache)."""
    hub = Hub({}, gated={"us/gated"})
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("cache")), "HF_HUB_DISABLE_XET": "1"}
    commands = Commands(**settings, NO_PROXY="*", no_proxy="*")
    yield hub, commands
    commands.close()
    hub.close()
