"""Messages of the package reach the user, unless the calling program has its own logging."""

import logging

from stssl.base.logs import LOG, shown_messages


def test_information_and_warnings_are_shown_while_the_context_lasts(monkeypatch):
    shown = []
    monkeypatch.setattr(LOG, "propagate", False)
    monkeypatch.setattr(LOG, "handlers", [])  # pytest adds one before each test
    with shown_messages(shown.append):
        LOG.info("weights: %s", "none")
        LOG.warning("100 % of them")
    LOG.info("later")
    assert shown == ["weights: none", "100 % of them"]
    assert not LOG.handlers and LOG.level == logging.NOTSET


def test_the_logging_of_another_program_is_left_alone(caplog):
    shown = []
    with shown_messages(shown.append):
        LOG.warning("a warning")
    assert shown == [] and caplog.messages == ["a warning"]
