"""Measures the link to a device, for a report."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from bench.subjects.processes import PROJECT
from simulator.errors import StudyError


async def link_rate(device: str) -> dict[str, Any]:
    """Run `enginepool.host.link_rate.measure` in a process of its own. Raises: StudyError."""
    command = [sys.executable, "-m", "enginepool.host.link_rate", device]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=PROJECT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise StudyError(f"the link to {device} cannot be measured: {errors.decode(errors='replace')[-500:].strip()}")
    measured: dict[str, Any] = json.loads(output)[device]
    if "error" in measured:
        raise StudyError(f"the link to {device} cannot be measured: {measured['error']}")
    return measured
