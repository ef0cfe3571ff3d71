"""The command-line interface; see the package."""

from __future__ import annotations

import importlib.metadata
import sys

from enginepool.engines.sglang.adaptations import source, uses
from enginepool.engines.sglang.adaptations.probes import Need, ProbeAnswer
from enginepool.engines.sglang.adaptations.table import ADAPTATIONS, Adaptation

_PACKAGES = ("sglang", "kvcached", "torch_memory_saver", "llguidance", "torch", "transformers")


def main() -> int:
    """Print the report; returns the exit status."""
    if not source.installed("sglang"):
        print("SGLang is not installed, so there is nothing to inspect", file=sys.stderr)
        return 1
    print("Installed:", ", ".join(map(_version, _PACKAGES)), end="\n\n")
    answers = {adaptation: _judge(adaptation) for adaptation in ADAPTATIONS}
    for adaptation, answer in answers.items():
        print(_describe(adaptation, *answer))
    gone = [f"{where}: {problem}" for target, where in uses.used().items() if (problem := _problem(target))]
    print(f"\nOther imports: {len(uses.used())} names, {len(gone) or 'none'} of them gone")
    print("".join(f"  {it}\n" for it in gone), end="")
    return int(bool(gone) or any(verdict is Need.MISSING for verdict, _ in answers.values()))


def _judge(adaptation: Adaptation) -> ProbeAnswer:
    if problems := [it for it in map(_problem, adaptation.targets) if it]:
        return Need.MISSING, "; ".join(problems)
    if missing := {source.package(it) for it in adaptation.targets if not source.installed(it)}:
        return Need.UNKNOWN, f"needs {', '.join(sorted(missing))}, which is not installed"
    return adaptation.probe()


def _problem(target: str) -> str:
    return source.problem(target) if source.installed(target) else ""


def _describe(adaptation: Adaptation, verdict: Need, reason: str) -> str:
    said = f"{verdict} ({reason})" if reason else str(verdict)
    return (
        f"{adaptation.name}: {said}\n"
        f"    avoids: {adaptation.avoids}\n"
        f"    {adaptation.where}; needed with {adaptation.seen}"
    )


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"


if __name__ == "__main__":
    sys.exit(main())
