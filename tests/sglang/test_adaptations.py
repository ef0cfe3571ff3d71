"""Which adaptations the installed SGLang still needs, and what is to be ported, told without starting any of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enginepool.engines.sglang.adaptations import __main__ as command
from enginepool.engines.sglang.adaptations import probes, source
from enginepool.engines.sglang.adaptations.table import ADAPTATIONS
from tests.rig.sglang_models import NEEDS_SGLANG

SCHEDULER = "sglang.srt.managers.scheduler"

PACKAGE = {
    "__init__.py": "from .outer import *\nfrom missing import gone\nimport elsewhere as other\n",
    "outer.py": "from upstream.inner.base import Base as Parent\n\nclass Child(Parent):\n    own: int = 0\n",
    "inner/base.py": """
try:
    import fast
except ImportError:
    def quick(a, *, b, c=1): ...

class Base:
    def __init__(self, size, device="cpu"):
        self.pool = self.made = size
    @staticmethod
    def free(slot): ...
    def use(self, slot, count=1): ...

class Fields:
    name: str
    number: int = 0
""",
    "inner/kernels.abi3.so": "",
}


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of this name. Its folder `inner` has no __init__.py."""
    for name, text in PACKAGE.items():
        file = tmp_path / "upstream" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Have one module of SGLang's read otherwise."""
    locate = source.locate

    def changed(module: str, old: str, new: str) -> None:
        found = locate(module)
        assert found is not None
        text = found.read_text()
        assert old in text
        file = tmp_path / "changed.py"
        file.write_text(text.replace(old, new))
        monkeypatch.setattr(source, "locate", lambda name: file if name == module else locate(name))

    return changed


@pytest.fixture(scope="module")
def printed() -> subprocess.CompletedProcess[str]:
    """The command, as one runs it."""
    module = "enginepool.engines.sglang.adaptations"
    return subprocess.run([sys.executable, "-m", module], capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs_once() -> Iterator[None]:
    """What the command has run of the installed SGLang is the same whatever `change` has the sources read like."""
    done: dict[str, subprocess.CompletedProcess[str]] = {}
    run = subprocess.run

    def run_once(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        code = command[-1]
        if code not in done:
            done[code] = run(command, **options)
        return done[code]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes.subprocess, "run", run_once)
        yield


def verdicts(printed: str) -> dict[str, str]:
    """What is said of each adaptation."""
    lines = [line for line in printed.splitlines() if not line.startswith(" ")]
    return dict(line.split(": ", 1) for line in lines if ": " in line)


# the command


@pytest.mark.sglang
@NEEDS_SGLANG
def test_nothing_is_missing_in_the_installed_version(printed: subprocess.CompletedProcess[str]) -> None:
    assert (printed.returncode, printed.stderr) == (0, "")
    assert all(f"\n{it.name}: " in printed.stdout for it in ADAPTATIONS)
    assert "none of them gone" in printed.stdout


@pytest.mark.sglang
@NEEDS_SGLANG
def test_what_runs_or_reads_on_a_cpu_is_seen_to_be_needed(printed: subprocess.CompletedProcess[str]) -> None:
    said = verdicts(printed.stdout)
    assert said["one gloo thread"] == "needed"
    assert said["no listening in groups of one"] == "needed"
    assert said["a late grammar error ends only its own request"] == "needed"
    assert said["no watchdog"] == "needed"
    assert said["rotary tables computed by the GPU"] == "cannot tell here (needs a GPU)"


@pytest.mark.sglang
@NEEDS_SGLANG
@pytest.mark.usefixtures("runs_once")
@pytest.mark.parametrize(
    ("old", "new", "name", "reason"),
    [
        ("create_scheduler_watchdog", "make_watchdog", "no watchdog", "create_scheduler_watchdog is gone"),
        (
            "self, batch: ScheduleBatch, last_batch: Optional[ScheduleBatch]\n",
            "self, batch: ScheduleBatch\n",
            "lazy decode graphs",
            "Scheduler.is_disable_overlap_for_batch takes (batch)",
        ),
    ],
)
def test_a_target_that_is_renamed_or_takes_something_else_is_to_be_ported(
    capsys: pytest.CaptureFixture[str],
    change: Callable[[str, str, str], None],
    old: str,
    new: str,
    name: str,
    reason: str,
) -> None:
    change(SCHEDULER, old, new)
    assert command.main() == 1
    assert verdicts(capsys.readouterr().out)[name] == f"missing target (must be ported) ({SCHEDULER}:{reason})"


@pytest.mark.sglang
@NEEDS_SGLANG
@pytest.mark.usefixtures("runs_once")
def test_an_import_of_ours_that_is_gone_is_told_with_the_file(
    capsys: pytest.CaptureFixture[str], change: Callable[[str, str, str], None]
) -> None:
    change("sglang.srt.managers.io_struct", "class ShutdownReq", "class EndReq")
    assert command.main() == 1
    assert "  front/layer.py: sglang.srt.managers.io_struct:ShutdownReq is gone\n" in capsys.readouterr().out


@pytest.mark.sglang
@NEEDS_SGLANG
@pytest.mark.usefixtures("runs_once")
def test_what_upstream_has_mended_is_not_needed_any_more(
    capsys: pytest.CaptureFixture[str], change: Callable[[str, str, str], None]
) -> None:
    change("sglang.srt.managers.load_snapshot", '"/dev/shm/', '"/elsewhere/')
    assert command.main() == 0
    assert verdicts(capsys.readouterr().out)["load snapshots in the socket folder"] == "not needed any more"


# looking at source


@pytest.mark.parametrize(
    "target",
    [
        "upstream",
        "upstream:Child",
        "upstream:inner",
        "upstream:other.anything",
        "upstream:gone",
        "upstream.inner:base",
        "upstream.inner.kernels:anything",
        "upstream.outer:Child.own",
        "upstream.outer:Child.pool",
        "upstream.outer:Child(size, device)",
        "upstream.outer:Child(size, ...)",
        "upstream.outer:Child.use(slot, count)",
        "upstream.inner.base:Base.free(slot)",
        "upstream.inner.base:Fields(name, ...)",
        "upstream.inner.base:quick(a, b, ...)",
        "upstream.inner.base:fast",
    ],
)
@pytest.mark.usefixtures("upstream")
def test_what_is_there_is_found(target: str) -> None:
    assert source.problem(target) == ""


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("upstream.nothing", "upstream.nothing is gone"),
        ("upstream:nothing", "upstream:nothing is gone"),
        ("upstream.outer:Child.nothing", "upstream.outer:Child.nothing is gone"),
        ("upstream.outer:Child(size)", "upstream.outer:Child takes (size, device)"),
        ("upstream.outer:Child.use(slot, size)", "upstream.outer:Child.use takes (slot, count)"),
        ("upstream.inner.base:Fields(...)", "upstream.inner.base:Fields takes (name, number)"),
        ("upstream.inner.base:quick(a, ...)", "upstream.inner.base:quick takes (a, b, c)"),
    ],
)
@pytest.mark.usefixtures("upstream")
def test_what_is_not_as_expected_is_named(target: str, problem: str) -> None:
    assert source.problem(target) == problem


@pytest.mark.usefixtures("upstream")
def test_nothing_is_imported_for_that() -> None:
    assert source.text("upstream.inner.base:Base.free") == "def free(slot): ..."
    assert not [name for name in sys.modules if name.startswith("upstream")]
