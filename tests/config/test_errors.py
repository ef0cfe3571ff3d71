"""What is said of errors that are not ours."""

from __future__ import annotations

import pytest

from config.errors import describe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no such shape", "ValueError: no such shape"),
        ("no such shape\nsee https://example.org\n", "ValueError: no such shape"),
        ("\n\nvalidation failed:\n   heads must divide 64\n", "ValueError: validation failed: heads must divide 64"),
        ("validation failed:", "ValueError: validation failed:"),
        ("", "ValueError"),
    ],
)
def test_a_foreign_error_is_told_in_one_line_with_its_reason(text: str, said: str) -> None:
    assert describe(ValueError(text)) == said
