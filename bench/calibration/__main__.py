"""Calibrates the simulator: `python -m bench.calibration --out FILE.json --calibration simulator/h200.json`.

It measures two kinds of engines on one GPU: unmodified SGLang engines, for the duration of steps by length, batch and
context when one works alone, and how much several slow each other down; and Prism's own workers behind their gateway,
with and without MPS, for host time, the way from gateway to engine, first uses, and several workers at once. Models
have real shapes and random weights, which does not affect speed. `--from FILE.json --parts together` repeats one part
and keeps the rest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.calibration.arguments import ENGINES, arguments
from bench.calibration.fit import fit
from bench.calibration.measure import measure
from bench.calibration.measurements import Measurements, read_measurements
from bench.calibration.plan import make_plan
from bench.calibration.report import markdown, write_measurements, write_page
from bench.calibration.rewrite import activation_entries, rewrite, step_entries, worker_entries
from bench.calibration.subject import CHUNK
from bench.calibration.worker_fit import fit_workers
from bench.calibration.worker_gateway import gateway, make
from bench.calibration.worker_measure import WorkerRun
from bench.calibration.worker_page import WorkerPage, short
from bench.calibration.worker_plan import make_worker_plan
from bench.machine import describe_machine, versions
from bench.shapes import config_of
from bench.subjects.processes import cancel_on_signals, run_to_its_end
from config.errors import PrismError
from simulator.calibration import H200, read_calibration
from simulator.progress import say


def main() -> None:
    run_to_its_end("bench.calibration", command(arguments()))


async def command(chosen: argparse.Namespace) -> int:
    cancel_on_signals()
    try:
        measured = read_measurements(chosen.raw) if chosen.raw else _nothing(chosen)
        failures = await _measure(chosen, measured)
        _conclude(chosen, measured)
    except PrismError as error:
        print(f"bench.calibration: {error}", file=sys.stderr)
        return 1
    for failure in failures:
        print(f"bench.calibration: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _nothing(chosen: argparse.Namespace) -> Measurements:
    plan = make_plan(chosen.models, quick=chosen.quick, room=chosen.room)
    return Measurements(
        machine=describe_machine(),
        versions=versions(),
        models={name: config_of(name, tiny=chosen.tiny) for name in chosen.models},
        chunk=CHUNK,
        loads=plan.loads,
    )


async def _measure(chosen: argparse.Namespace, measured: Measurements) -> list[str]:
    """Measure the requested parts; returns the failures. Raises: StudyError."""
    with tempfile.TemporaryDirectory(prefix="prism-calibration-") as name:
        folder = Path(name)
        if ENGINES in chosen.parts:
            await _engines(chosen, measured, folder)
        if parts := [part for part in chosen.parts if part != ENGINES]:
            return await _workers(chosen, measured, parts, chosen.folder or folder / "models")
    return []


async def _engines(chosen: argparse.Namespace, measured: Measurements, folder: Path) -> None:
    plan = make_plan(chosen.models, quick=chosen.quick, room=chosen.room)
    measured.loads = plan.loads
    for rows in (measured.prefill, measured.decode, measured.alone, measured.together):
        rows.clear()
    folders = {name: folder / name for name in chosen.models}
    make({name: config_of(name, tiny=chosen.tiny) for name in chosen.models}, folder)
    device = "cpu" if chosen.tiny else "cuda"
    await measure(plan, folders, device, folder, measured, lambda: write_measurements(_out(chosen), measured))


async def _workers(chosen: argparse.Namespace, measured: Measurements, parts: list[str], folder: Path) -> list[str]:
    measured.models |= (configs := {name: config_of(name, tiny=chosen.tiny) for name in chosen.worker_models})
    plan = make_worker_plan(chosen.worker_models)
    device = "cpu" if chosen.tiny else chosen.device
    nbytes = sum(measured.shapes[seat.model].weight_bytes for seat in plan.seats)
    make(configs, folder)
    failures = []
    for mps in _modes(chosen):
        async with gateway(plan, nbytes, folder, device, mps=mps) as subject:
            run = WorkerRun(
                subject, plan, measured.workers, lambda: write_measurements(_out(chosen), measured), mps=mps
            )
            await run.measure(parts)
            failures += run.failures
    return failures


def _modes(chosen: argparse.Namespace) -> list[bool]:
    wanted = {"on": [True], "off": [False], "both": [False, True]}[chosen.mps]
    if chosen.tiny and True in wanted:
        say("MPS is not available, so its measurements are left out")
        return [mps for mps in wanted if not mps]
    return list(wanted)


def _out(chosen: argparse.Namespace) -> Path:
    out: Path = chosen.out or chosen.raw
    return out


def _conclude(chosen: argparse.Namespace, measured: Measurements) -> None:
    """Fit the model and write the requested files. Raises: StudyError."""
    fits = fit(measured)
    workers = fit_workers(measured, fits, read_calibration(chosen.calibration or H200))
    out = _out(chosen)
    write_measurements(out, measured, fits)
    write_page(out.with_suffix(".md"), measured, fits, workers)
    print(short(WorkerPage(measured, workers)) if measured.workers.steps else markdown(measured, fits, workers))
    say(f"written: {out} and {out.with_suffix('.md')}")
    if chosen.calibration is not None:
        entries = step_entries(measured, fits, str(out)) | worker_entries(workers, measured, str(out))
        if chosen.activation is not None:
            entries |= activation_entries(chosen.activation)
        rewrite(chosen.calibration, entries)
        say(f"rewritten: {', '.join(entries)} of {chosen.calibration}")


if __name__ == "__main__":
    main()
