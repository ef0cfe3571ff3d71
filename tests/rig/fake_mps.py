"""In place of NVIDIA's MPS where there is no GPU: programs of the same names that are started, asked and ended alike.

The daemon listens in its pipe folder, starts a server in a session of its own when told to, and knows as clients those
named in the file `clients`. `asked` has every line that any daemon was told, after its pipe folder's name.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import psutil
import pytest

CONTROL = """#!{python}
import os, pathlib, socket, subprocess, sys, time

folder, here = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]), pathlib.Path("{folder}")

def ask():
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(folder / "control"))
        except OSError:
            sys.exit("Cannot find MPS control daemon process")
        connection.sendall(sys.stdin.read().encode())
        connection.shutdown(socket.SHUT_WR)
        sys.stdout.write(connection.makefile().read())

def serve():
    if (here / "broken").exists():
        sys.exit((here / "broken").read_text())
    logs = pathlib.Path(os.environ["CUDA_MPS_LOG_DIRECTORY"])
    servers = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "control"))
        listener.listen()
        print("Starting control daemon", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                line = connection.makefile().read().strip()
                with (here / "asked").open("a") as asked:
                    asked.write(folder.name + " " + line + "\\n")
                words = line.split()
                answer = ""
                if words[0] == "start_server":
                    log = (logs / "server.log").open("a")
                    log.write("[Server] A fault in the log\\n")
                    log.flush()
                    servers.append(subprocess.Popen([here / "nvidia-cuda-mps-server"], start_new_session=True))
                elif words[0] == "get_server_list":
                    answer = "".join(str(server.pid) + "\\n" for server in servers)
                elif words[0] == "get_client_list":
                    answer = (here / "clients").read_text() if (here / "clients").exists() else ""
                elif words[0] == "terminate_client":
                    while (here / "stuck").exists():
                        time.sleep(0.05)
                elif words[0] == "quit":
                    for server in servers:
                        server.terminate()
                        server.wait()
                    sys.exit(0)
                connection.sendall(answer.encode())

serve() if sys.argv[1:] == ["-f"] else ask()
"""
SERVER = """#!{python}
import signal
signal.pause()
"""


class FakeMps:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("nvidia-cuda-mps-control", CONTROL), ("nvidia-cuda-mps-server", SERVER)):
            program = folder / name
            program.write_text(text.format(python=sys.executable, folder=folder))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def asked(self) -> list[list[str]]:
        """What the daemons were told: the folder's name, the command, its words."""
        file = self.folder / "asked"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    def has_clients(self, *pids: int) -> None:
        (self.folder / "clients").write_text("".join(f"{pid}\n" for pid in pids))

    def refuses_to_start(self, why: str) -> None:
        (self.folder / "broken").write_text(why)

    def gets_stuck(self) -> None:
        """It does not answer a termination any more."""
        (self.folder / "stuck").touch()

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those that run, of the daemons (`control`), the servers (`server`), or both."""
        return [found for found in psutil.process_iter() if self._is(found, f"nvidia-cuda-mps-{name}")]

    def _is(self, found: psutil.Process, name: str) -> bool:
        try:
            alive = found.status() != psutil.STATUS_ZOMBIE
            return alive and any(part.startswith(f"{self.folder}/{name}") for part in found.cmdline())
        except psutil.Error:
            return False


@pytest.fixture
def fake_mps(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMps:
    """NVIDIA's MPS, as far as this host can tell."""
    folder = short_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return FakeMps(folder)


def gpu_pool(
    *, workers: int = 2, mps: str = "on", devices: tuple[str, ...] = ("cuda:0",), **more: object
) -> dict[str, object]:
    """Of simulated workers, which are as good as on GPUs to whoever does not look inside."""
    return {"engine": "simulated", "devices": list(devices), "workers_per_device": workers, "mps": mps, **more}
