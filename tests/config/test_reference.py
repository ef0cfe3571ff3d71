"""docs/configuration.md: the registry's own types and words, and nothing else."""

from __future__ import annotations

from config.reference import PAGE, keys, page


def test_the_page_is_what_the_types_say() -> None:
    assert PAGE.read_text() == page(), "run `python -m config.reference`"


def test_every_key_says_what_it_means() -> None:
    assert [key for key, meaning in keys() if not meaning] == []


def test_values_are_written_as_in_a_registry() -> None:
    rows = page().splitlines()
    assert any(row.startswith("| `header_timeout` | duration above 0 | `15s` |") for row in rows)
    assert any(row.startswith("| `ahead` | duration | `250ms` |") for row in rows)
    assert any(row.startswith("| `kv_memory` | size above 0 | `1GiB` |") for row in rows)
    assert any(row.startswith("| `devices` | list of at least one device | `[cpu]` |") for row in rows)
    assert any(row.startswith("| `verify` | `true` or `false` | `false` |") for row in rows)
    assert any(row.startswith("| `name` | name | **required** |") for row in rows)
