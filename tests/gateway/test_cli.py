"""The command `prism`: text for people, JSON for programs, and an exit status that can be trusted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli.main import main
from gateway.report import ModelsReport, Report, Status, WorkersReport, read
from tests.rig.asking import ENDLESS, chat, session, streaming
from tests.rig.serving import PATIENCE, Prism, ServePrism, simulated

ENGINE: dict[str, Any] = {"engine_args": {"tpot": "1ms", "activation": "10ms"}}
ADMIN_COMMANDS = [
    ["status"],
    ["models"],
    ["workers"],
    ["activate", "a"],
    ["evict", "a"],
    ["drain"],
    ["resume"],
    ["stop"],
]


@dataclass(frozen=True)
class Done:
    """What a run of `prism` came to."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        return line


RunCli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Runs `prism` in this process: everything but a gateway is the same there."""

    def run(*arguments: str, at: Prism | None = None) -> Done:
        where = ["--admin-socket", str(at.admin_socket)] if at is not None else []
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *where])
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def prism(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """Two models on one worker."""
    registry = simulated("a", "b", pool={**ENGINE, "workers_per_device": 1})
    registry["scheduler"] = {"quantum": 0, "drain_after": 0}
    prism = Prism.start(tmp_path_factory.mktemp("cli") / "gateway", registry)
    prism.wait_for_workers()
    yield prism
    prism.close()


def in_a_process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finished(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, out, err)


def write_registry(file: Path, registry: dict[str, object], **gateway: object) -> Path:
    file.write_text(yaml.safe_dump({**registry, "gateway": gateway}))
    return file


# --- asking wrongly -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["serve"], "FILE --demo"),
        (["serve", "registry.yaml", "--demo"], "--demo"),
        (["serve", "registry.yaml", "--port", "70000"], "70000"),
        (["serve", "registry.yaml", "--port", "-1"], "-1"),
        (["serve", "registry.yaml", "--port", "http"], "expected a port, 0 to 65535"),
        (["serve", "registry.yaml", "--log-level", "loud"], "loud"),
        (["check"], "FILE"),
        (["activate"], "MODEL"),
        (["activate", "a", "b"], "b"),
        (["activate", "a", "--worker", "first"], "--worker"),
        (["evict"], "MODEL"),
        (["evict", "a", "--worker", "1"], "--worker"),
        (["status", "a"], "a"),
        (["status", "--json=yes"], "--json"),
        (["drain", "--force"], "--force"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(cli: RunCli, arguments: list[str], names: str) -> None:
    done = cli(*arguments)
    assert done.status == 2
    assert names in done.complaint
    assert "--help" in done.complaint


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["activate", "--help"]])
def test_help_is_no_error(cli: RunCli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.status == 0
    assert done.out.startswith("usage: prism")


# --- the registry ---------------------------------------------------------------------------------------------


def test_check_says_that_a_registry_is_good(cli: RunCli, tmp_path: Path) -> None:
    file = write_registry(tmp_path / "registry.yaml", simulated("a", "b"))
    done = cli("check", str(file))
    assert (done.status, done.err) == (0, "")
    assert done.out == f"{file}: ok; 2 models, 2 workers, engine simulated\n"


def test_check_says_what_each_device_has(cli: RunCli, tmp_path: Path) -> None:
    pool = {"devices": ["cuda:0", "cuda:1"], "device_memory": "80GiB"}
    done = cli("check", str(write_registry(tmp_path / "registry.yaml", simulated("a", pool=pool))))
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[1:] == [f"cuda:{n}: 80.0 GiB for weights, workers and KV cache" for n in (0, 1)]


def test_check_says_that_a_gpu_is_not_there_to_be_asked(cli: RunCli, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    registry = {"pool": {"engine": "sglang", "devices": ["cuda:99"]}, "models": [{"name": "a", "path": str(tmp_path)}]}
    done = cli("check", str(write_registry(tmp_path / "registry.yaml", registry)))
    assert done.status == 0
    assert "not checked here: the memory of cuda:99 is not known" in done.out


@pytest.mark.parametrize("command", ["check", "serve"])
def test_every_error_of_a_registry_is_told_at_once(cli: RunCli, tmp_path: Path, command: str) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(
        "gateway: {port: 70000, colour: red}\n"
        "pool: {engine: steam}\n"
        "models:\n"
        "  - {name: a, slo: {ttft: soon}}\n"
        "  - {path: /nowhere}\n"
    )
    done = cli(command, str(file))
    assert (done.status, done.out) == (2, "")
    lines = done.err.splitlines()
    assert all(line.startswith(f"{file}:") and "expected" in line for line in lines)
    for key in ("gateway.port", "gateway.colour", "pool.engine", "models[0].slo.ttft", "models[1].name"):
        assert sum(f" {key}: " in line for line in lines) == 1, key


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_registry_that_is_not_there_is_told_in_one_line(cli: RunCli, tmp_path: Path, command: str) -> None:
    done = cli(command, str(tmp_path / "nowhere.yaml"))
    assert done.status == 2
    assert "nowhere.yaml" in done.complaint


# --- no gateway, or one too many ------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("arguments", ADMIN_COMMANDS, ids=lambda arguments: arguments[0])
def test_without_a_gateway_every_command_fails(
    cli: RunCli, tmp_path: Path, arguments: list[str], as_json: bool
) -> None:
    path = tmp_path / "nobody.sock"
    done = cli(*arguments, "--admin-socket", str(path), *(["--json"] if as_json else []))
    assert done.status == 1
    assert done.complaint == f"prism {arguments[0]}: no gateway answers at {path}: No such file or directory"


def test_a_second_gateway_does_not_touch_the_first_ones_socket(prism: Prism, tmp_path: Path) -> None:
    file = write_registry(tmp_path / "second.yaml", simulated("z"), port=0, admin_socket=str(prism.admin_socket))
    done = finished(in_a_process("serve", str(file)))
    assert done.status == 1
    assert done.complaint == f"prism serve: another gateway uses the admin socket {prism.admin_socket}"
    assert [model.name for model in prism.status().models] == ["a", "b"]


def test_a_port_in_use_is_told_in_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        admin_socket = str(tmp_path / "admin.sock")
        file = write_registry(tmp_path / "registry.yaml", simulated("a"), port=port, admin_socket=admin_socket)
        done = finished(in_a_process("serve", str(file), "--log-level", "error"))
    assert done.status == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.complaint
    assert [file.name for file in tmp_path.iterdir()] == ["registry.yaml"]


def test_the_port_of_the_registry_can_be_overruled(serve_prism: ServePrism) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        prism = serve_prism(simulated("a", gateway={"port": port}), arguments=("--port", "0"))
    assert not prism.url.endswith(f":{port}")
    assert prism.get("/health") == {"status": "ok"}


# --- looking --------------------------------------------------------------------------------------------------


def test_status_is_a_page_for_people(cli: RunCli, prism: Prism) -> None:
    assert cli("activate", "a", at=prism).status == 0
    done = cli("status", at=prism)
    assert (done.status, done.err) == (0, "")
    first, *rest = done.out.splitlines()
    assert first.startswith("ready; engine simulated; policy lru; 0 requests in flight, 0 waiting")
    assert any(line.split()[:3] == ["a", "active", "0"] for line in rest)
    assert any("a is active on worker 0" in line for line in rest)


def test_models_and_workers_are_tables(cli: RunCli, prism: Prism) -> None:
    models = cli("models", at=prism).out.splitlines()
    assert [line.split()[0] for line in models] == ["model", "a", "b"]
    workers = cli("workers", at=prism).out.splitlines()
    assert [line.split()[0] for line in workers] == ["worker", "0"]
    assert workers[1].split()[1:3] == ["cpu", str(prism.pid(0))]


@pytest.mark.parametrize(
    ("command", "report", "key"),
    [("status", Status, "models"), ("models", ModelsReport, "models"), ("workers", WorkersReport, "workers")],
)
def test_json_is_for_programs(cli: RunCli, prism: Prism, command: str, report: type[Report], key: str) -> None:
    done = cli(command, "--json", at=prism)
    assert (done.status, done.err) == (0, "")
    data = json.loads(done.out)
    assert data["ok"] is True
    assert len(data[key]) == len(getattr(read(prism.command(command), report), key)) > 0


def test_the_socket_can_come_from_the_environment(cli: RunCli, prism: Prism, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISM_ADMIN_SOCKET", str(prism.admin_socket))
    assert cli("models").status == 0


def test_a_reader_that_stops_reading_is_no_reason_for_a_traceback(prism: Prism) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as nobody_reads:
        command = [sys.executable, "-m", "gateway.cli", "status", "--admin-socket", str(prism.admin_socket)]
        done = subprocess.run(
            command, stdout=nobody_reads, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


# --- doing ----------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_command_that_waits_without_a_traceback(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(short_path / "admin.sock"))
        mute.listen()
        mute.settimeout(PATIENCE)
        command = [
            sys.executable,
            "-m",
            "gateway.cli",
            "activate",
            "a",
            "--admin-socket",
            str(short_path / "admin.sock"),
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        connection, _ = mute.accept()
        with connection:
            assert connection.recv(1)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
    (short_path / "admin.sock").unlink()
    assert (process.returncode, said) == (130, "")


def test_what_was_done_is_said_with_the_time_it_took(cli: RunCli, prism: Prism) -> None:
    if prism.model("b").state == "active":
        prism.command("evict", model="b")
    activated = cli("activate", "b", at=prism)
    assert (activated.status, activated.err) == (0, "")
    assert activated.out.startswith("b is active on worker 0 after 0.")
    assert activated.out.rstrip().endswith("s)")
    evicted = cli("evict", "b", "--json", at=prism)
    data = json.loads(evicted.out)
    assert (evicted.status, data["ok"], data["text"], data["model"]) == (0, True, "b is evicted", "b")
    assert data["seconds"] > 0


def test_a_command_that_failed_says_so_and_exits_1(cli: RunCli, prism: Prism) -> None:
    done = cli("activate", "nobody", at=prism)
    assert done.status == 1
    assert done.complaint.startswith("prism activate: The model 'nobody' does not exist.")
    done = cli("activate", "a", "--worker", "7", at=prism)
    assert (done.status, done.complaint) == (1, "prism activate: there is no worker 7; they are 0 to 0")


def test_a_command_that_failed_says_so_in_json_too(cli: RunCli, prism: Prism) -> None:
    done = cli("evict", "nobody", "--json", at=prism)
    assert done.status == 1
    assert json.loads(done.out)["ok"] is False


def test_drain_and_resume(cli: RunCli, prism: Prism) -> None:
    assert cli("drain", at=prism).out.startswith("drained: 0 requests finished")
    assert cli("status", at=prism).out.startswith("not ready (draining")
    assert cli("resume", at=prism).status == 0
    assert cli("status", at=prism).out.startswith("ready")


async def test_a_command_that_is_killed_while_it_waits_leaves_nothing_pending(prism: Prism) -> None:
    """The busy model's worker is drained for the other one; once nobody asks for that any more, it serves on."""
    async with session(prism) as client, streaming(client, "a", ENDLESS):
        waiting = in_a_process("activate", "b", "--admin-socket", str(prism.admin_socket))
        await asyncio.to_thread(prism.wait_until, lambda s: s.workers[0].state == "draining", "a is drained")
        waiting.kill()
        finished(waiting)
        await asyncio.to_thread(prism.wait_until, lambda s: s.workers[0].state == "active", "a serves on")
    await asyncio.to_thread(prism.wait_until, lambda s: s.in_flight == 0, "the stream is gone")
    assert (prism.worker(0).state, prism.worker(0).model) == ("active", "a")


def test_a_command_whose_gateway_is_killed_fails(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool={"engine_args": {"activation": "1h"}}))
    waiting = in_a_process("activate", "a", "--admin-socket", str(prism.admin_socket))
    prism.wait_until(lambda status: any(w.state == "activating" for w in status.workers), "a is being activated")
    prism.kill()
    done = finished(waiting)
    assert done.status == 1
    assert done.complaint.startswith("prism activate: the gateway ended before it answered")
    for left in prism.folder.glob("admin.sock*"):  # the next start would sweep it
        left.unlink() if left.is_socket() or left.is_file() else left.rmdir()


def test_stop_returns_when_the_gateway_is_gone(cli: RunCli, serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=ENGINE))
    done = cli("stop", at=prism)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("stopping; 0 requests in flight")
    assert prism.process.wait(PATIENCE) == 0
    assert cli("status", at=prism).status == 1


def test_sighup_ends_nobody_and_says_that_it_does_nothing(serve_prism: ServePrism) -> None:
    """To the whole group of the gateway and to its processes, as closing a terminal or `systemctl kill` sends it."""
    prism = serve_prism(simulated("a", pool=ENGINE))
    prism.wait_for_workers()
    pids = [worker.pid for worker in prism.status().workers]
    for process in prism.descendants():
        process.send_signal(signal.SIGHUP)
    os.killpg(prism.process.pid, signal.SIGHUP)
    assert prism.wait_for_log("SIGHUP").endswith("nothing is reloaded yet; the registry is read at the start only")
    assert chat(prism, "a", max_tokens=1).status == 200
    assert [worker.pid for worker in prism.status().workers] == pids
