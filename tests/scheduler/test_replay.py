"""A recorded run, replayed: the same decisions, or the first that is not; and what a broken recording costs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from config.registry import Registry
from gateway.cli.main import main
from gateway.recording import Recorder
from scheduler.actions import AnyAction
from scheduler.events import AnyEvent, Arrived, StageFailed, Tick, WorkerBlank
from scheduler.learned.profile import Profile
from scheduler.replay.recorded import VERSION, Header, Recording, Step, encoder
from scheduler.replay.replay import Comparison, replay
from scheduler.scheduler import Scheduler
from tests.rig import fake_pool
from tests.rig.asking import chat
from tests.rig.fake_pool import Bench, registry
from tests.rig.serving import ServePrism, simulated
from tests.scheduler import test_random

FAST = {"engine_args": {"tpot": "1ms", "activation": "10ms"}}
EVERYTHING_COUNTED = {"device_memory": "80GiB", **FAST}


class Recorded(Scheduler):
    """A scheduler that keeps its recording as lines."""

    def __init__(self, registry: Registry, weight_bytes: Mapping[str, int], **options: Any) -> None:
        super().__init__(registry, weight_bytes, **options)
        capacities = dict(options["capacities"])
        kv_bytes = dict(options.get("kv_bytes") or {})
        header = Header(
            VERSION,
            registry,
            dict(weight_bytes),
            capacities,
            kv_bytes,
            options.get("profile") or Profile(),
            staging=True,
            validate=True,
        )
        self.lines = [encoder.encode(header) + b"\n"]

    def handle(self, event: AnyEvent, now: float) -> list[AnyAction]:
        actions = super().handle(event, now)
        self.lines.append(encoder.encode(Step(now, event, actions)) + b"\n")
        return actions


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The recording of a short run: two models take turns on one worker, and it dies once."""
    monkeypatch.setattr(fake_pool, "Scheduler", Recorded)
    bench = Bench(["a", "b"], quantum=0.0)
    for model in ("a", "b", "a"):
        bench.finish(bench.serve(model))
    bench.ask("a")
    bench.die(0)
    bench.wait(1.0)
    assert isinstance(bench.scheduler, Recorded)
    return bench.scheduler.lines


@pytest.fixture
def prism_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `prism replay` on a file, or on lines; returns its exit status, what it printed, and its complaint."""

    def run(recording: Path | list[bytes], *arguments: str) -> tuple[int, str, str]:
        if isinstance(recording, list):
            file = tmp_path / "recording.jsonl"
            file.write_bytes(b"".join(recording))
            recording = file
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["replay", str(recording), *arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


Replay = Callable[..., tuple[int, str, str]]


def again(lines: list[bytes]) -> Comparison:
    recording = Recording("recording", lines)
    return replay(recording.header.scheduler(), recording)


def tampered(lines: list[bytes]) -> tuple[list[bytes], int]:
    """The first request goes to another worker; also the number of that line."""
    index = next(index for index, line in enumerate(lines) if b"Dispatch" in line)
    step = json.loads(lines[index])
    step["actions"][-1]["worker"] = 7
    return [*lines[:index], json.dumps(step).encode() + b"\n", *lines[index + 1 :]], index + 1


# --- the same -------------------------------------------------------------------------------------------------


def test_any_run_replays_to_the_same_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorded] = []

    def scheduler(*arguments: Any, **options: Any) -> Recorded:
        made.append(Recorded(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(test_random, "Scheduler", scheduler)
    few = settings(
        max_examples=15,
        stateful_step_count=30,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    run_state_machine_as_test(test_random.Pool, settings=few)
    for run in made:
        comparison = again(run.lines)
        assert comparison.difference is None
        assert comparison.events == len(run.lines) - 1
    assert sum(again(run.lines).actions for run in made) > 0


def test_a_gateways_run_replays_to_the_same_decisions(
    serve_prism: ServePrism, tmp_path: Path, prism_replay: Replay
) -> None:
    file = tmp_path / "recording.jsonl"
    prism = serve_prism(simulated("a", "b", "c", pool=EVERYTHING_COUNTED), arguments=("--record", str(file)))
    for model in ("a", "b", "c", "a"):
        assert chat(prism, model, max_tokens=3).status == 200
    assert prism.command("activate", model="b").ok
    assert prism.command("evict", model="b").ok
    assert chat(prism, "a", max_tokens=3, stream=True).status == 200
    os.kill(prism.pid(prism.model("a").workers[0]), signal.SIGKILL)
    prism.wait_until(lambda status: sum(worker.restarts for worker in status.workers) == 1, "it is replaced")
    assert chat(prism, "a", max_tokens=3).status == 200
    assert prism.stop() == 0

    status, out, err = prism_replay(file, "--json")
    told = json.loads(out)
    assert (status, err) == (0, "")
    assert (told["same"], told["cut_off"], told["difference"]) == (True, False, None)
    recorded = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert told["events"] == len(recorded)
    assert told["actions"] == sum(len(step["actions"]) for step in recorded)
    kinds = {step["event"]["type"] for step in recorded}
    assert kinds >= {"Arrived", "FirstToken", "Finished", "OperatorEvict", "Parked", "WorkerDead", "Tick"}


def test_what_agrees_is_counted(lines: list[bytes], prism_replay: Replay) -> None:
    actions = sum(len(json.loads(line)["actions"]) for line in lines[1:])
    status, out, _ = prism_replay(lines)
    assert status == 0
    assert out.endswith(f"recording.jsonl: the same after {len(lines) - 1} events, {actions} actions\n")


def test_an_event_on_which_the_scheduler_failed_fails_again(tmp_path: Path, prism_replay: Replay) -> None:
    file = tmp_path / "failed.jsonl"
    header = Header(VERSION, registry(["a"]), {}, {}, {}, Profile(), staging=True, validate=False)
    recorder = Recorder(file, header, header.scheduler())
    recorder.handle(Tick(), 1.0)
    with pytest.raises(IndexError):
        recorder.handle(WorkerBlank(7), 2.0)
    recorder.close()
    assert json.loads(file.read_bytes().splitlines()[-1])["actions"] is None
    assert prism_replay(file)[0] == 0


# --- not the same ---------------------------------------------------------------------------------------------


def test_the_first_difference_is_shown(lines: list[bytes], prism_replay: Replay) -> None:
    changed, line = tampered(lines)
    status, out, err = prism_replay(changed)
    assert (status, err) == (1, "")
    summary, where, *outcomes = out.splitlines()
    assert f"the same after {line - 2} events" in summary
    assert f"recording.jsonl:{line}: at 1000.000000 s " in where
    assert outcomes[0] == "recorded:"
    assert "  Dispatch(request=1, worker=7)" in outcomes[: outcomes.index("came out:")]
    assert "  Dispatch(request=1, worker=0)" in outcomes[outcomes.index("came out:") :]


def test_the_first_difference_in_json(lines: list[bytes], prism_replay: Replay) -> None:
    changed, line = tampered(lines)
    status, out, _ = prism_replay(changed, "--json")
    told = json.loads(out)
    assert (status, told["same"], told["events"]) == (1, False, line - 2)
    assert told["difference"]["line"] == line
    assert told["difference"]["recorded"][-1] == {"type": "Dispatch", "request": 1, "worker": 7}
    assert told["difference"]["replayed"][-1] == {"type": "Dispatch", "request": 1, "worker": 0}


def test_a_replay_that_fails_where_the_run_did_not_says_how(lines: list[bytes], prism_replay: Replay) -> None:
    stray = encoder.encode(Step(2000.0, Arrived(99, "nobody", 10, 2001.0), []))
    status, out, _ = prism_replay([*lines, stray])
    assert status == 1
    assert out.splitlines()[-4:] == ["recorded:", "  nothing", "came out:", "  KeyError: 'nobody'"]


# --- broken files ---------------------------------------------------------------------------------------------


def test_a_file_cut_off_in_its_last_line_is_replayed_up_to_there(lines: list[bytes], prism_replay: Replay) -> None:
    cut = [*lines[:-1], lines[-1][:-10]]
    status, out, _ = prism_replay(cut)
    assert status == 0
    assert f"the same after {len(lines) - 2} events" in out
    assert "The last line is cut off and was left out." in out
    assert json.loads(prism_replay(cut, "--json")[1])["cut_off"] is True


@pytest.mark.parametrize(
    ("change", "place", "expected"),
    [
        (lambda lines: [], 1, "expected the header of a recording"),
        (lambda lines: [b"pool: {}\n"], 1, "expected the header of a recording"),
        (lambda lines: [b"\xff\xfe\n"], 1, "expected the header of a recording"),
        (lambda lines: [lines[0].replace(b'"version":5', b'"version":4'), *lines[1:]], 1, "$.version"),
        (lambda lines: lines[1:], 1, "expected the header of a recording, version 5"),
        (lambda lines: [*lines[:3], b"oops\n", *lines[3:]], 4, "expected an event with its time and its actions"),
        (lambda lines: [*lines[:3], lines[3][:-10] + b"\n", *lines[4:]], 4, "expected an event"),
        (lambda lines: [*lines[:2], lines[2].replace(b'"type":"', b'"type":"Un'), *lines[3:]], 3, "expected an event"),
    ],
    ids=["empty", "yaml", "binary", "version", "no-header", "no-json", "cut-in-the-middle", "unknown-event"],
)
def test_a_bad_file_is_told_with_its_line(
    lines: list[bytes],
    prism_replay: Replay,
    change: Callable[[list[bytes]], list[bytes]],
    place: int,
    expected: str,
) -> None:
    status, out, err = prism_replay(change(lines))
    assert (status, out) == (2, "")
    (complaint,) = err.splitlines()
    assert f"recording.jsonl:{place}: " in complaint
    assert expected in complaint


def test_a_file_that_is_not_there(tmp_path: Path, prism_replay: Replay) -> None:
    status, _, err = prism_replay(tmp_path / "nowhere.jsonl")
    assert (status, err) == (2, f"{tmp_path}/nowhere.jsonl: No such file or directory\n")


# --- what cannot be written -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "why"), [("/dev/full", "No space left on device"), ("/nowhere/recording.jsonl", "No such file")]
)
def test_a_recording_that_cannot_be_written_costs_nothing_else(serve_prism: ServePrism, path: str, why: str) -> None:
    prism = serve_prism(simulated("a", pool=FAST), arguments=("--record", path))
    assert chat(prism, "a", max_tokens=3).status == 200
    assert prism.stop() == 0
    prism.close()
    (line,) = (line for line in prism.log if "recording" in line)
    assert f"recording to {path} has ended: " in line
    assert why in line


def test_a_reason_that_is_no_text_ends_the_recording_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The name of a file may be any bytes, and so may an error that names it."""
    header = Header(VERSION, registry(["a"]), {"a": 1}, {}, {}, Profile(), staging=True, validate=True)
    recorder = Recorder(tmp_path / "recording.jsonl", header, header.scheduler())
    for _ in range(2):
        recorder.handle(StageFailed("a", "cannot read \udcff"), 1.0)
    recorder.close()
    (record,) = caplog.records
    assert "has ended: " in record.message


def test_a_disk_that_is_too_slow_ends_the_recording_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody empties takes some lines, and then none."""
    monkeypatch.setattr("gateway.recording.BUFFER", 1000)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    header = Header(VERSION, registry(["a"]), {}, {}, {}, Profile(), staging=True, validate=True)
    recorder = Recorder(tmp_path / "pipe", header, header.scheduler())
    for second in range(5000):
        recorder.handle(Tick(), float(second))
    os.close(reader)
    recorder.close()
    (record,) = caplog.records
    assert record.message.endswith("has ended: the disk is too slow")
