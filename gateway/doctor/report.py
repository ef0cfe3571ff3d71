"""Findings for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from gateway.doctor.driver import CHECK
from gateway.doctor.finding import Finding, Status


def render(findings: Sequence[Finding]) -> str:
    """A row each; under what is not ok, what to do about it; and a line that sums up."""
    width = max(len(finding.check) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.status:8} {finding.check:{width}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':8} {'':{width}}  -> {finding.fix}")
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """What it comes to."""
    bad, doubtful = _count(findings, "failed"), _count(findings, "warning")
    counted = f"{len(findings)} checks, {bad} failed, {doubtful} with a warning"
    where = "" if any(it.check == CHECK and it.status == "ok" for it in findings) else " on the CPU only"
    return f"not fit to serve: {counted}" if bad else f"fit to serve{where}: {counted}"


def to_json(findings: Sequence[Finding]) -> str:
    """`ok` is what the exit status says."""
    fit = not _count(findings, "failed")
    return json.dumps({"ok": fit, "findings": [asdict(finding) for finding in findings]}, indent=2)


def _count(findings: Sequence[Finding], status: Status) -> int:
    return sum(finding.status == status for finding in findings)
