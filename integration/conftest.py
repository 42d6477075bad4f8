import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_loop_is_made_in_passing() -> Iterator[None]:
    """Asking for the current loop makes one, which nobody closes; have one, and close it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
