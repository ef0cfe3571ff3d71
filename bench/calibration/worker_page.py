"""The report on Prism's own workers in Markdown: measured figures next to the simulator's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bench.calibration.measurements import Measurements
from bench.calibration.sharing_fit import predicted
from bench.calibration.tables import ms, percent, table
from bench.calibration.worker_fit import WorkerFits, costs_of
from bench.calibration.worker_rows import SPLITS, Busy, EngineGroup, Steps
from simulator.sharing import ALONE, Contention, sharing_of

Row = list[str]


class WorkerPage:
    def __init__(self, measured: Measurements, workers: WorkerFits) -> None:
        self._rows = measured.workers
        self._found = workers.found
        self._calibration = workers.calibration
        self._costs = costs_of(measured, workers.calibration)

    def sections(self) -> list[str]:
        """The sections; none without measurements."""
        rows = self._rows
        if not (rows.steps or rows.groups):
            return []
        lines = ["", "# Prism's own workers", "", "Engines behind their gateway, asked as by clients."]
        for source in dict.fromkeys(rows.sources.values()):
            parts = [part for part, its in rows.sources.items() if its == source]
            lines += ["", f"Not measured by this bench: {'; '.join(parts)}. {source}"]
        lines += self._section("Decode steps, one engine busy", self.steps())
        lines += self._section("First tokens of an idle engine", self._firsts())
        lines += self._section("What a prefill adds to a gap between two tokens", self._stalls())
        lines += self._section("A process's first token of a model", self._first_uses())
        lines += self._section("Several at once", self.groups())
        return [*lines, *self._section("What the simulator takes from this", self._entries())]

    def _section(self, title: str, lines: list[str]) -> list[str]:
        return ["", f"## {title}", "", *lines] if len(lines) > 2 else []

    def steps(self) -> list[str]:
        header = ("model", "MPS", "idle models beside", "contexts", "KV splits", "step, ms", "simulated", "off by")
        return table(header, [self._step(row) for row in self._rows.steps])

    def _step(self, row: Steps) -> Row:
        made = self._simulated(row)
        given = [_contexts(row.contexts), str(row.kv_splits), ms(row.seconds)]
        same = row.kv_splits == SPLITS
        told = [ms(made), percent(made / row.seconds - 1)] if same else ["", ""]
        return [row.model, _mps(row.mps), str(row.beside), *given, *told]

    def _simulated(self, row: Steps) -> float:
        beside = Contention(None, (), resident=row.beside > 0)
        step, _ = self._costs[row.model].contended_decode(row.batch, round(row.context), row.longest, beside)
        return step.first

    def _firsts(self) -> list[str]:
        rows = [
            [
                *(row.model, _mps(row.mps), str(row.beside), str(row.tokens), ms(row.median)),
                *self._against(self._first_token(row.model, row.tokens), row.median),
            ]
            for row in self._rows.firsts
        ]
        return table(("model", "MPS", "idle models beside", "tokens", "median, ms", "simulated", "off by"), rows)

    def _first_token(self, model: str, tokens: int) -> float:
        costs = self._costs[model]
        return costs.front(tokens) + costs.prefill(costs.prefill_work(tokens, 0)) + costs.prefill_host

    def _stalls(self) -> list[str]:
        rows = []
        for row in self._rows.stalls:
            costs = self._costs[row.model]
            made = costs.contended_prefill(costs.prefill_work(row.tokens, 0), ALONE) + costs.prefill_host
            rows.append(
                [
                    *(row.model, _mps(row.mps), str(row.beside), str(row.tokens), ms(row.plain), ms(row.median)),
                    *self._against(made, row.median),
                ]
            )
        header = ("model", "MPS", "idle models beside", "tokens", "plain gap, ms", "added, ms", "simulated", "off by")
        return table(header, rows)

    def _first_uses(self) -> list[str]:
        rows = [
            [row.model, _mps(row.mps), ms(row.first), ms(row.later), "yes" if row.rehearsed else "no"]
            for row in self._rows.first_uses
        ]
        return table(("model", "MPS", "first, ms", "later, ms", "new to the machine"), rows)

    def groups(self) -> list[str]:
        header = ("at once", "MPS", "engine", "step or first token, ms", "simulated", "off by")
        return table(header, [row for group in self._rows.groups for row in self._group(group)])

    def _group(self, group: EngineGroup) -> Iterator[Row]:
        sharing = sharing_of(self._calibration, mps=group.mps)
        for place, member in enumerate(group.members):
            made = predicted(member, group, self._costs, sharing)
            head = ["", ""] if place else [_names(group), _mps(group.mps)]
            yield [*head, _load(member), ms(member.seconds), *self._against(made, member.seconds)]

    def _entries(self) -> list[str]:
        rows = [
            [entry, f"{value:.4g}" if value < 1e12 else "any", term]
            for entry, it in self._found.items()
            for term, value in it.terms.items()
        ]
        return table(("entry", "value", "term"), rows)

    def _against(self, made: float, measured: float) -> Row:
        return [ms(made), percent(made / measured - 1)]


def short(page: WorkerPage) -> str:
    """The summary printed at the end of a run."""
    return "\n".join(["", *page.steps(), "", *page.groups()])


def _contexts(contexts: Sequence[int]) -> str:
    return " + ".join(f"{count} x {tokens}" for tokens, count in Counter(contexts).items())


def _names(group: EngineGroup) -> str:
    counted = Counter(member.model for member in group.members)
    return ", ".join(f"{count} {model}" for model, count in counted.items())


def _load(member: Busy) -> str:
    return f"{member.model} {f'decode {member.batch}' if member.batch else f'prompts of {member.prompt}'}"


def _mps(mps: bool) -> str:
    return "on" if mps else "off"
