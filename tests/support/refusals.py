"""One test for every table of calls that are refused."""

from collections.abc import Callable
from typing import Any

import pytest


def refused(table: dict[str, tuple[Callable[[], Any], str]]) -> Callable[[str], None]:
    """A test that each call of the table raises a ValueError with its message."""

    @pytest.mark.parametrize("name", table)
    def test_messages(name: str) -> None:
        call, message = table[name]
        with pytest.raises(ValueError, match=message):
            call()

    return test_messages
