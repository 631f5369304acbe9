"""Errors that a user can act on: what notebooks show of them."""

import traceback

import pytest

from stssl.base.errors import ConfigError, StoppedError, StsslError


@pytest.mark.parametrize("error", [ConfigError("data.split: no split x"), StoppedError("SIGTERM: saved")])
def test_notebooks_show_an_error_in_one_line(error):
    assert error._render_traceback_() == [f"{type(error).__name__}: {error}"]
    assert StsslError("two\nlines")._render_traceback_() == ["StsslError: two", "lines"]


def test_python_itself_still_shows_the_traceback():
    with pytest.raises(ConfigError) as raised:
        raise ConfigError("wrong")
    shown = "".join(traceback.format_exception(raised.value))
    assert shown.startswith("Traceback") and __file__ in shown
    assert not hasattr(ValueError("wrong"), "_render_traceback_")  # control
