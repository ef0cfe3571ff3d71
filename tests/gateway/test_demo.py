"""`make demo` without make: the whole product in one command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.rig.serving import PATIENCE


def start_demo(folder: Path, demo_models: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo on models made before, with files of its own."""
    (folder / "demo").mkdir()
    (folder / "demo" / "models").symlink_to(demo_models)
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.demo", "--demo-dir", str(folder / "demo"), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} is not in:\n{seen}")


def test_the_demo_shows_a_swap_and_ends(tmp_path: Path, demo_folder: Path) -> None:
    with start_demo(tmp_path, demo_folder, "--once") as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert "3 models answered, each twice, on 2 workers" in output
    assert "evicted llama-tiny from worker" in output


def test_the_demo_serves_until_interrupted(tmp_path: Path, demo_folder: Path) -> None:
    with start_demo(tmp_path, demo_folder) as process:
        output = read_until(process, "Serving until Ctrl-C")
        assert "curl -N http://127.0.0.1:" in output
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130


def test_a_killed_demo_takes_its_gateway_with_it(tmp_path: Path, demo_folder: Path) -> None:
    with start_demo(tmp_path, demo_folder) as process:
        read_until(process, "Serving until Ctrl-C")
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate(timeout=PATIENCE)
    assert len(started) >= 4, "the gateway, its template and two workers"
    _, alive = psutil.wait_procs(started, timeout=PATIENCE)
    assert not alive
    for leftover in (tmp_path / "prism").iterdir():  # as after any kill -9, the next start would sweep them
        leftover.unlink() if not leftover.is_dir() else leftover.rmdir()


def test_a_demo_that_cannot_serve_says_why(tmp_path: Path, demo_folder: Path) -> None:
    (tmp_path / "prism").write_text("in the way of the admin socket's folder")
    with start_demo(tmp_path, demo_folder, "--once") as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "cannot use" in output
    assert "demo failed: the gateway did not start" in output
