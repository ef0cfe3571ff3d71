"""README and docs name nothing that is not there: links, files, modules, commands and make targets."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from gateway.cli import main

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PARTS = frozenset({ROOT / "docs" / "results" / "scheduler_notes.md"})
"""Text that a program puts into another page."""
OWN_PACKAGES = ("bench", "config", "enginepool", "gateway", "installation", "scheduler", "simulator", "tests")
NOT_OURS = frozenset({"config.json", "parallel_state.py", "distributed/parallel_state.py", "registry.yaml"})
"""Files of models, of SGLang, and of the reader's own."""

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
PLANNED = re.compile(r"`[^`\n]+` \(new\b")
"""A file that a worked task would add."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"\w[\w.-]*(?:/[\w.-]+)*(?:/|\.(?:py|md|yaml|json|txt|toml|in|png))")
MODULE = re.compile(r"\bpython3? -m ([\w.]*\w)")
COMMAND = re.compile(r"(?:^|/)prism ([a-z]+)", re.MULTILINE)
TARGET = re.compile(r"^make ([a-z-]+)", re.MULTILINE)


def test_links_lead_somewhere() -> None:
    assert (
        _missing(lambda page: (link for link in LINK.findall(_prose(page)) if not _leads_somewhere(page, link))) == {}
    )


def test_files_that_are_named_are_there() -> None:
    files = _files()
    assert _missing(lambda page: (path for path in _paths(page) if not _is_among(files, path))) == {}


def test_modules_that_are_run_are_there() -> None:
    assert _missing(lambda page: (name for name in _modules(page) if importlib.util.find_spec(name) is None)) == {}


def test_commands_of_prism_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = {name for name in {name for page in PAGES for name in _named(COMMAND, page)} if _is_command(name)}
    assert _missing(lambda page: _named(COMMAND, page) - known) == {}


def test_make_has_the_targets() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert _missing(lambda page: _named(TARGET, page) - known) == {}


def test_the_index_leads_to_every_page() -> None:
    linked = {(INDEX.parent / link.split("#")[0]).resolve() for link in LINK.findall(INDEX.read_text())}
    pages = {page for page in PAGES if page.is_relative_to(INDEX.parent)} - PARTS - {INDEX}
    assert sorted(page.name for page in pages - linked) == []


def _missing(of: Callable[[Path], Iterable[str]]) -> dict[str, list[str]]:
    """What each page names that is not there; nothing for pages that name no such thing."""
    found = {str(page.relative_to(ROOT)): sorted(of(page)) for page in PAGES}
    return {page: names for page, names in found.items() if names}


# what pages say


def _paths(page: Path) -> list[str]:
    spans = SPAN.findall(PLANNED.sub("", _prose(page)))
    return [span for span in spans if PATH.fullmatch(span) and span not in NOT_OURS]


def _modules(page: Path) -> list[str]:
    return [name for name in MODULE.findall(page.read_text()) if name.split(".")[0] in OWN_PACKAGES]


def _named(what: re.Pattern[str], page: Path) -> set[str]:
    return {name for code in _code(page) for name in what.findall(code)}


def _code(page: Path) -> Iterator[str]:
    """Blocks and spans: only there are words commands."""
    yield from FENCE.findall(page.read_text())
    yield from SPAN.findall(_prose(page))


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


# what is there


def _files() -> list[str]:
    """What is in the repository, each path with a slash before it; folders end in one."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        here = "/" + str(Path(folder).relative_to(ROOT)) + "/"
        found += [here, *(here + name for name in names)]
    return found


def _is_among(files: list[str], path: str) -> bool:
    """By its whole path or the end of it, such as `front/fields.py`."""
    return any(file.endswith(f"/{path}") for file in files)


def _leads_somewhere(page: Path, link: str) -> bool:
    if "://" in link:
        return True
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in _anchors(target))


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _is_command(name: str) -> bool:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    return ended.value.code == 0
