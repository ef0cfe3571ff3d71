from __future__ import annotations

import logging
import uuid

import pytest

from enginepool.host.library_logs import take_over


@pytest.fixture
def library() -> logging.Logger:
    """A library's logger, with a handler of its own as kvcached's has."""
    logger = logging.getLogger(f"library-{uuid.uuid4().hex}")
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    return logger


def test_a_message_that_differs_in_its_numbers_only_is_logged_once(
    library: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    take_over(library.name)
    library.warning("%d pages are quarantined", 1)
    library.warning("%d pages are quarantined", 25)
    library.warning("another warning")
    assert caplog.messages == ["1 pages are quarantined", "another warning"]


def test_the_library_does_not_write_to_its_own_handlers_any_more(
    library: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    take_over(library.name)
    library.warning("heard")
    assert "heard" not in capsys.readouterr().err


def test_what_prism_brings_about_itself_is_for_debugging(
    library: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    take_over(library.name, expected=("shrink to",))
    library.warning("shrink to %d blocks refused", 7)
    assert not caplog.messages
    with caplog.at_level(logging.DEBUG, "prism"):
        library.warning("shrink to %d blocks refused", 7)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("DEBUG", "shrink to 7 blocks refused")
    ]


def test_an_error_after_a_warning_of_the_same_words_is_logged_too(
    library: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    take_over(library.name)
    library.warning("a page is gone")
    library.error("a page is gone")
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
