"""Durations and sizes, as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("700ms", 0.7),
        ("250us", 0.00025),
        ("2s", 2.0),
        ("1.5m", 90.0),
        ("3 min", 180.0),
        ("1h", 3600.0),
        (" 2 s ", 2.0),
        ("1e-05s", 0.00001),
        ("2", 2.0),
        (2, 2.0),
        (0.25, 0.25),
    ],
)
def test_durations_are_read_in_seconds(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    ("written", "nbytes"),
    [
        ("16GiB", 16 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5KiB", 1536),
        ("1GB", 10**9),
        ("1kB", 1000),
        ("1KB", 1000),
        ("2TiB", 2 * 2**40),
        ("7 B", 7),
        (4096, 4096),
        (1e3, 1000),
    ],
)
def test_sizes_are_read_in_bytes(written: object, nbytes: int) -> None:
    assert parse_size(written) == nbytes


@pytest.mark.parametrize(
    "written", ["", "s", "2 sec", "2S", "1,5s", "5GiB", "ms5", "²s", "1e99999s", "1e308h", True, None, []]
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"not a number|not one of the units|too large"):
        parse_duration(written)


def test_an_exponent_that_would_take_for_ever_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        parse_duration("1e9999s")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400])
def test_durations_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match=r"finite|large"):
        parse_duration(value)


@pytest.mark.parametrize(
    "written", ["", "GiB", "5Gib", "5gb", "5G", "1s", 0.5, float("inf"), float("nan"), True, None, {}]
)
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"not a number|not one of the units|not a whole number"):
        parse_size(written)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.0032, "3.2 ms"),
        (0.00001, "10.0 us"),
        (0.0, "0.0 s"),
        (0.99996, "1.0 s"),
        (59.96, "1.0 min"),
        (90.0, "1.5 min"),
        (7200.0, "2.0 h"),
        (-2.0, "-2.0 s"),
    ],
)
def test_durations_are_written_in_the_unit_that_suits(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(
    ("nbytes", "written"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (16 * 2**30, "16.0 GiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_are_written_in_the_unit_that_suits(nbytes: int, written: str) -> None:
    assert format_size(nbytes) == written


@given(st.floats(min_value=1e-6, max_value=1e7))
def test_a_duration_that_is_written_can_be_read_again(seconds: float) -> None:
    """One digit after the point, before which there is at least one: up to a twentieth of it is lost."""
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.051)


@given(st.integers(min_value=0, max_value=2**60))
def test_a_size_that_is_written_can_be_read_again(nbytes: int) -> None:
    assert parse_size(format_size(nbytes)) == pytest.approx(nbytes, rel=0.051)


@given(st.integers(min_value=0, max_value=2**60))
def test_bytes_are_read_exactly(nbytes: int) -> None:
    assert parse_size(f"{nbytes}B") == parse_size(f"{nbytes}") == nbytes


@given(st.text())
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert value == parse(text.strip())
