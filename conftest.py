"""For `tests` and `integration` alike."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A test does not measure time; how long an example takes is the machine's business.
settings.register_profile("weir", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("weir")


@pytest.fixture(autouse=True, scope="session")
def _no_loop_is_made_in_passing() -> Iterator[None]:
    """Asking for the current loop makes one, which nobody closes; have one, and close it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
