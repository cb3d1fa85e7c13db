"""What several unit tests begin with."""

from collections.abc import Iterator

import pytest

from mrpo_ds.console import configure_console


@pytest.fixture
def console() -> Iterator[None]:
    """This process speaks, as global rank 0 does."""
    configure_console(enabled=True)
    yield
    configure_console(enabled=False)
