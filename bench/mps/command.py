"""Measures the effect of NVIDIA MPS on processes sharing a GPU, with matrix products only: `python -m bench.mps`.

It needs torch and a GPU, but neither SGLang nor a model. First it reads what NVML reports about clients' memory, on
which the device's ledger relies. Then it measures steps of concurrent processes: in turns, through MPS, with shares of
the SMs (CUDA_MPS_ACTIVE_THREAD_PERCENTAGE), and with priorities (CUDA_MPS_CLIENT_PRIORITY; 1 is the lower one).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

from bench.machine import describe_machine
from bench.subjects.device_memory import device_memory
from bench.subjects.processes import PROJECT, run_to_its_end
from config.gpus import VISIBLE, nvml_handle, uuid_of
from enginepool.messages import MpsClient
from enginepool.mps.control import mps_environment
from enginepool.mps.daemon import MpsDaemon
from enginepool.process import set_up_logging
from simulator.errors import StudyError

MIB = 2**20
SECONDS = 3.0
"""Seconds per round, once all processes are running."""
SHARE, PRIORITY = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_CLIENT_PRIORITY"


@dataclass(frozen=True)
class Part:
    """One process of a round."""

    work: str
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        values = " ".join(
            f"{name.removeprefix('CUDA_MPS_').lower()}={value}" for name, value in self.environment.items()
        )
        return f"{self.work} {values}".strip()


D1, D8, P8 = Part("decode-1b"), Part("decode-8b"), Part("prefill-8b")
IN_TURNS: tuple[tuple[Part, ...], ...] = ((D1,), (D8,), (P8,), (D1, D1), (D1,) * 4, (D8, D8), (D8, D1), (D1, P8))


def _shared(part: Part, percent: int) -> Part:
    return Part(part.work, {SHARE: str(percent)})


def _ranked(part: Part, priority: int) -> Part:
    return Part(part.work, {PRIORITY: str(priority)})


WITH_MPS = (
    *IN_TURNS,
    (_shared(D1, 50),),
    (_shared(D1, 50), _shared(D1, 50)),
    (D1, _shared(P8, 50)),
    (D1, _shared(P8, 80)),
    (_ranked(D1, 0), _ranked(P8, 1)),
    (_ranked(D8, 0), _ranked(D8, 1)),
)


class MpsProcess:
    """One process of a round."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, part: Part, client: MpsClient | None, nbytes: int = 0) -> MpsProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.mps.subject", part.work, str(nbytes),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=PROJECT,
            env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **mps_environment(client), **part.environment},
        )  # fmt: skip
        return cls(process)

    async def said(self) -> dict[str, Any]:
        """The next line of its output. Raises: StudyError if there is none."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise StudyError(f"a process ended with {await self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def _memory(client: MpsClient | None, device: str) -> dict[str, Any]:
    """Memory of three processes that hold 1, 2 and 3 GiB, as reported by NVML and by themselves."""
    with device_memory(device) as memory:
        assert memory is not None
        before = memory.used
        subjects = [await MpsProcess.start(Part("idle"), client, gib * 2**30) for gib in (1, 2, 3)]
        try:
            own = [await subject.said() for subject in subjects]
            handle = nvml_handle(uuid_of(device, os.environ))
            return {
                "used_mib": (memory.used - before) // MIB,
                "own_mib": {it["pid"]: it["reserved"] // MIB for it in own},
                "compute": _listed(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
                "mps": _listed(pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handle)),
            }
        finally:
            await _end(subjects)


def _listed(running: Iterable[Any]) -> dict[int, int | None]:
    """MiB by process id."""
    return {it.pid: None if it.usedGpuMemory is None else int(it.usedGpuMemory) // MIB for it in running}


async def _round(parts: Sequence[Part], client: MpsClient | None) -> list[dict[str, Any]]:
    """Step durations of each part in seconds, while all of them run. Raises: StudyError."""
    subjects = [await MpsProcess.start(part, client) for part in parts]
    try:
        for subject in subjects:
            await subject.said()
        for subject in subjects:
            subject.go_on()
        await asyncio.sleep(SECONDS)
        for subject in subjects:
            subject.go_on()
        return [{"part": str(part), **await subject.said()} for part, subject in zip(parts, subjects, strict=True)]
    finally:
        await _end(subjects)


async def _end(subjects: Sequence[MpsProcess]) -> None:
    await asyncio.gather(*(subject.end() for subject in subjects))


async def _run(device: str) -> dict[str, Any]:
    os.environ[VISIBLE] = uuid_of(device, os.environ)
    result: dict[str, Any] = {"machine": describe_machine(), "memory": {}, "rounds": []}
    result["memory"]["in turns"] = await _memory(None, "cuda:0")
    await _rounds(result, "in turns", IN_TURNS, None)
    with tempfile.TemporaryDirectory(prefix="prism-mps-") as folder:
        daemon = MpsDaemon("cuda:0", os.environ[VISIBLE], Path(folder, "m"))
        await daemon.start()
        try:
            result["memory"]["MPS"] = await _memory(daemon.client, "cuda:0")
            await _rounds(result, "MPS", WITH_MPS, daemon.client)
        finally:
            await daemon.stop()
    return result


async def _rounds(result: dict[str, Any], how: str, rounds: Sequence[Sequence[Part]], client: MpsClient | None) -> None:
    print(f"{how}: {json.dumps(result['memory'][how])}", flush=True)
    for parts in rounds:
        try:
            measured = await _round(parts, client)
        except StudyError as error:
            print(f"{how}: {' + '.join(map(str, parts))}: {error}", flush=True)
            continue
        result["rounds"].append({"how": how, "parts": measured})
        steps = " + ".join(f"{it['part']} {1e3 * it['p50']:.2f} (p95 {1e3 * it['p95']:.2f})" for it in measured)
        print(f"{how}: {steps} ms", flush=True)


async def _main(options: argparse.Namespace) -> int:
    result = await _run(options.device)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.mps", description=__doc__.partition(":")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, metavar="FILE", help="all figures as JSON")
    set_up_logging("DEBUG")
    run_to_its_end("bench.mps", _main(parser.parse_args()))
