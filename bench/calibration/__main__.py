"""Calibrates the simulator: `python -m bench.calibration --out FILE.json --calibration bench/simulator/h200.json`.

Several of SGLang's own engines, not modified, on one GPU: what steps take by length, batch and context while one works
alone, and how much they slow each other. Models have real shapes and random weights, which changes no speed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench.calibration.arguments import arguments
from bench.calibration.fit import fit
from bench.calibration.measure import measure
from bench.calibration.measurements import Measurements, read_measurements
from bench.calibration.plan import make_plan
from bench.calibration.report import markdown, write_measurements, write_page
from bench.calibration.rewrite import activation_entries, rewrite, step_entries
from bench.calibration.subject import CHUNK
from bench.machine import describe_machine, versions
from bench.processes import cancel_on_signals, run_to_its_end
from bench.progress import say
from bench.shapes import config_of
from config.errors import PrismError


def main() -> None:
    run_to_its_end("bench.calibration", command(arguments()))


async def command(chosen: argparse.Namespace) -> int:
    cancel_on_signals()
    try:
        measured = read_measurements(chosen.raw) if chosen.raw else await _measured(chosen)
        _conclude(chosen, measured)
    except PrismError as error:
        print(f"bench.calibration: {error}", file=sys.stderr)
        return 1
    return 0


async def _measured(chosen: argparse.Namespace) -> Measurements:
    plan = make_plan(chosen.models, quick=chosen.quick, room=chosen.room)
    configs = {name: config_of(name, tiny=chosen.tiny) for name in chosen.models}
    measured = Measurements(
        machine=describe_machine(), versions=versions(), models=configs, chunk=CHUNK, loads=plan.loads
    )
    with tempfile.TemporaryDirectory(prefix="prism-calibration-") as folder:
        folders = {name: Path(folder, name) for name in configs}
        for name, config in configs.items():
            folders[name].mkdir()
            (folders[name] / "config.json").write_text(json.dumps(config))
        device = "cpu" if chosen.tiny else "cuda"
        await measure(plan, folders, device, Path(folder), measured, lambda: write_measurements(chosen.out, measured))
    return measured


def _conclude(chosen: argparse.Namespace, measured: Measurements) -> None:
    """Fit, and write what was asked for. Raises: BenchError."""
    fits = fit(measured)
    print(markdown(measured, fits))
    out = chosen.out or chosen.raw
    write_measurements(out, measured, fits)
    write_page(out.with_suffix(".md"), measured, fits)
    say(f"written: {out} and {out.with_suffix('.md')}")
    if chosen.calibration is not None:
        entries = step_entries(measured, fits, str(out))
        if chosen.activation is not None:
            entries |= activation_entries(chosen.activation)
        rewrite(chosen.calibration, entries)
        say(f"rewritten: {', '.join(entries)} of {chosen.calibration}")


if __name__ == "__main__":
    main()
