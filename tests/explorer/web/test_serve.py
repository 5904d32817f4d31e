"""Messages of the server: those that the user can do something about."""

import logging
import sys

import pytest

from melbo.explorer.web.serve import _is_told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("No response returned."), False),
        (RuntimeError("of my own"), True),
        (ValueError("No response returned."), True),
    ],
)
def test_only_a_tab_that_closed_before_it_had_its_page_is_not_told(error, told):
    try:
        raise error
    except (RuntimeError, ValueError):
        record = logging.LogRecord("", logging.ERROR, "", 0, "", (), sys.exc_info())
    assert _is_told(record) == told


def test_a_message_without_an_error_is_told():
    assert _is_told(logging.LogRecord("", logging.INFO, "", 0, "listening", (), None))
