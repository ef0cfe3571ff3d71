"""Which waiting requests can still meet their deadlines, and which of them goes next, on one machine.

Moore-Hodgson: of jobs with deadlines on one machine, the largest number can end in time if one walks through them in
deadline order and, whenever one would end too late, drops the longest of those kept so far. What is kept runs in
deadline order. The same jobs are kept if one takes them from the shortest to the longest and keeps each that fits
beside those already kept; this second view is what makes `AdmissionQueue` cheap.

Priorities come first: jobs are kept from the most important level to the least, and within a level by Moore-Hodgson.
So, of a level, the largest number is kept that fits beside what the levels above have kept; no job is ever dropped for
a less important one; and no dropped job would fit beside the kept ones. With one level the number is the optimum. With
several it is a heuristic: neither the number nor a sum of weights over all levels is the best one possible.

Times are given in seconds on any clock and must be finite. They are counted in whole nanoseconds, so that sums are
exact and do not depend on the order in which they were added up.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

NANOSECONDS = 1e9
_PLACE = 2**64
"""The parts of a rank are below this: a number compares faster than a tuple."""
_EVERYBODY = _PLACE**8
"""A rank behind all others."""
LOOK_BEYOND = 10
"""How many times its own cost the plan of one that does not fit is looked at beyond that, to know it for longer."""


class Job(NamedTuple):
    request: int
    deadline: float
    """When it must have ended, in seconds."""
    cost: float
    """How long it takes the machine, in seconds; not negative."""
    priority: int = 0
    """Higher is more important."""


class Plan(NamedTuple):
    kept: list[int]
    """Requests that end in time if they run in this order, which is that of their deadlines."""
    late: list[int]
    """All others, in deadline order."""


def on_time(jobs: Iterable[Job], start: float) -> Plan:
    """Plan `jobs` on a machine that is free from `start`, in seconds. O(levels x n + n log n).

    Of equal deadlines the lower number is first; of jobs that are equally long the later deadline is dropped.
    """
    entries = sorted(_entry(job) for job in jobs)
    levels: dict[int, list[_Entry]] = {}
    for entry in entries:
        levels.setdefault(entry.level, []).append(entry)
    kept: list[_Entry] = []
    for level in sorted(levels):
        kept = _with_level(levels[level], kept, _ticks(start))
    in_time = {entry.request for entry in kept}
    return Plan([entry.request for entry in kept], [e.request for e in entries if e.request not in in_time])


class AdmissionQueue:
    """Waiting requests of all models of one machine; `first` says who goes next, as a new `on_time` would.

    A request that can still end in time is open, others are late. The earliest open request is not in the plan if it,
    together with all later ones that rank before it, does not fit. That depends on the start only through one number,
    the latest start at which they fit, so this number is kept, with bounds on how far it can have moved since: what
    was added can have lowered it by no more than its cost, what was removed raised it by no more than its cost. It is
    computed again, O(n), when the bounds leave the answer open. Another such number, for all open requests, answers at
    once while every deadline can be met. Only where a level is overloaded by itself and a less important request has an
    earlier deadline, a whole plan is made.
    """

    def __init__(self, patience: float) -> None:
        """A request `patience` seconds past its deadline goes before everything."""
        self._patience = _ticks(patience)
        self._now: float = -math.inf
        self._waiting: dict[int, _Entry] = {}
        self._open: list[_Entry] = []
        self._levels: dict[int, list[_Entry]] = {}  # those that are open
        self._late: list[_Entry] = []
        self._closing: list[tuple[int, int]] = []  # a heap of last starts; forgets those removed when they come up
        self._added = 0
        self._removed = 0
        self._all_fit_until: float = math.inf
        self._all_may_fit_from: float = 0  # by `_removed`
        self._fit: dict[int, _Bounds] = {}
        self._above_fit: dict[int, _Bounds] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: int) -> bool:
        return request in self._waiting

    def add(self, request: int, deadline: float, cost: float, priority: int = 0) -> None:
        """Times are in seconds. A request that waits already gets the new values."""
        self.remove(request)
        entry = _entry(Job(request, deadline, cost, priority))
        self._waiting[request] = entry
        insort(self._open, entry)
        insort(self._levels.setdefault(entry.level, []), entry)
        heapq.heappush(self._closing, (entry.deadline - entry.cost, request))
        self._added += entry.cost
        # Started by then, all still fit: those behind the new one are later by its cost, and those before it are done
        # by their own deadlines, which are earlier than its. A lower bound: with nobody behind it, nobody is later.
        self._all_fit_until = min(self._all_fit_until, entry.deadline) - entry.cost

    def remove(self, request: int) -> None:
        """Forget a request; one that does not wait is no error."""
        entry = self._waiting.pop(request, None)
        if entry is not None and not _discard(self._late, entry):
            self._leave_open(entry)
        if len(self._closing) > 2 * len(self._open) + 64:
            self._closing = [(entry.deadline - entry.cost, entry.request) for entry in self._open]
            heapq.heapify(self._closing)

    def first(self, now: float) -> int | None:
        """Who goes next if the machine is free from `now`, in seconds; None when nobody waits.

        Those who are past their patience go first, then the earliest of the plan, then the late ones; each in the order
        of deadlines. Time does not go back: an earlier `now` than the last one counts as the last one.
        """
        tick = self._now = max(_ticks(now), self._now)
        self._close(tick)
        if self._late and tick - self._late[0].deadline > self._patience:
            return self._late[0].request
        if self._open:
            return self._first_open(tick)
        return self._late[0].request if self._late else None

    def _close(self, now: float) -> None:
        """Move those that can no longer end in time."""
        while self._closing and self._closing[0][0] < now:
            last_start, request = heapq.heappop(self._closing)
            entry = self._waiting.get(request)
            if entry is not None and entry.deadline - entry.cost == last_start and _contains(self._open, entry):
                self._leave_open(entry)
                insort(self._late, entry)

    def _leave_open(self, entry: _Entry) -> None:
        # Only the first one is known to have delayed all the others. One from the middle gives time to those behind it
        # alone, so the bound stays; `_all_fit` computes it again once enough has been removed for that to matter.
        if self._open[0] == entry:
            self._all_fit_until += entry.cost
        _discard(self._open, entry)
        _discard(self._levels[entry.level], entry)
        self._removed += entry.cost
        self._fit.pop(entry.request, None)
        self._above_fit.pop(entry.request, None)
        if not self._open:
            self._all_fit_until = math.inf

    def _first_open(self, now: float) -> int:
        if self._all_fit(now):
            return self._open[0].request
        # The first entry that fits before all later ones of a better rank is in the plan. One that does not is dropped
        # for them, so the search goes on. But where the later ones of more important levels do not even fit without
        # it, they drop some of their own, and only a whole plan tells which.
        for position, entry in enumerate(self._open):
            if self._fits(self._fit, position, entry.rank, entry.cost, now):
                return entry.request
            if not self._fits(self._above_fit, position, _least_rank(entry.level), 0, now):
                break
        return _first_kept([entries for _, entries in sorted(self._levels.items()) if entries], now).request

    def _all_fit(self, now: float) -> bool:
        """Whether all that are open fit; False may also mean that this is not likely enough to look again."""
        if self._all_fit_until >= now:
            return True
        if self._removed < self._all_may_fit_from:
            return False
        latest = _latest_start(self._open, _EVERYBODY, 0, math.inf, -math.inf)
        self._all_fit_until = latest
        self._all_may_fit_from = self._removed + now - latest
        return latest >= now

    def _fits(self, known: dict[int, _Bounds], position: int, rank: int, spent: int, now: float) -> bool:
        """Whether `spent` fits from `now` on, by the deadline at `position`, with all later ones before `rank`."""
        entry = self._open[position]
        bounds = known.get(entry.request)
        if bounds is not None and bounds.low - self._added >= now:
            return True
        if bounds is not None and bounds.high + self._removed < now:
            return False
        # Where it does not fit, an upper bound of the latest start is answer enough. It is sought some way beyond what
        # is needed now, so that it is still an answer after some of the others are gone.
        needed = now - LOOK_BEYOND * entry.cost
        latest = _latest_start(self._open[position + 1 :], rank, spent, entry.deadline - spent, needed)
        low = latest + self._added if latest >= now else -math.inf
        known[entry.request] = _Bounds(low, latest - self._removed)
        return latest >= now


class _Entry(NamedTuple):
    """A job in nanoseconds. Entries sort by deadline.

    Where most of the time goes, its parts are taken by their number: by name they cost a third more.
    """

    deadline: int
    request: int
    cost: int
    level: int
    """The most important first."""
    rank: int
    """The order in which jobs are kept: by level, then the shortest first."""


class _Bounds(NamedTuple):
    """Between which starts the latest one is at which something fits, had nothing been added or removed, ever."""

    low: float
    high: float


def _ticks(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


def _entry(job: Job) -> _Entry:
    deadline, cost = _ticks(job.deadline), _ticks(job.cost)
    rank = ((-job.priority * _PLACE + cost) * _PLACE + deadline + _PLACE // 2) * _PLACE + job.request
    return _Entry(deadline, job.request, cost, -job.priority, rank)


def _least_rank(level: int) -> int:
    """Nobody of the level ranks before this, and all of more important ones do."""
    return int(level * _PLACE**3)


def _contains(entries: Sequence[_Entry], entry: _Entry) -> bool:
    position = bisect_left(entries, entry)
    return position < len(entries) and entries[position] == entry


def _discard(entries: list[_Entry], entry: _Entry) -> bool:
    position = bisect_left(entries, entry)
    found = position < len(entries) and entries[position] == entry
    if found:
        del entries[position]
    return found


def _latest_start(entries: Iterable[_Entry], before: int, spent: int, latest: float, needed: float) -> float:
    """The latest start, at most `latest`, at which `spent` and then all entries that rank before `before` end in time.

    Below `needed` an upper bound is enough.
    """
    for entry in entries:
        if entry[4] < before:
            spent += entry[2]
            if entry[0] - spent < latest:
                latest = entry[0] - spent
                if latest < needed:
                    break
    return latest


def _first_kept(levels: Sequence[Sequence[_Entry]], start: float) -> _Entry:
    """The first of what `on_time` keeps of two levels or more, the most important first; nobody is late by itself.

    A level matters only while somebody below it is earlier than all that is kept above, and fits beside that.
    """
    *upper, last = levels
    kept: list[_Entry] = []
    for number, level in enumerate(upper, 1):
        kept = _with_level(level, kept, start)
        slack = _latest_start(kept, _EVERYBODY, 0, math.inf, -math.inf) - start
        if not any(_earlier(lower, kept[0], slack) for lower in levels[number:]):
            return kept[0]
    candidates = _earlier(last, kept[0], slack)
    entries = sorted([*kept, *last]) if candidates else []
    for entry in candidates:
        behind = entries[bisect_left(entries, entry) + 1 :]
        if _latest_start(behind, entry.rank, entry.cost, entry.deadline - entry.cost, start) >= start:
            return entry
    return kept[0]


def _earlier(level: Sequence[_Entry], than: _Entry, slack: float) -> list[_Entry]:
    """Those of a level that are no longer than `slack`."""
    return [entry for entry in level[: bisect_left(level, than)] if entry.cost <= slack]


def _with_level(level: Sequence[_Entry], above: Sequence[_Entry], start: float) -> list[_Entry]:
    """What is kept of a level by Moore-Hodgson beside all `above`, and these, in deadline order."""
    entries = sorted([*above, *level])
    if _latest_start(entries, _EVERYBODY, 0, math.inf, start) >= start:
        return entries
    droppable = _least_rank(level[0].level)
    longest: list[tuple[int, int]] = []
    dropped = set()
    spent = start
    for position, entry in enumerate(entries):
        spent += entry[2]
        if entry[4] >= droppable:
            heapq.heappush(longest, (-entry[2], -position))
        # Of what is kept so far, dropping the longest gives back most time. `above` has no entry in this heap: it is
        # never dropped, and fits by itself, so that dropping from this level always suffices.
        while spent > entry[0] and longest:
            shorter, drop = heapq.heappop(longest)
            spent += shorter
            dropped.add(-drop)
    return [entry for position, entry in enumerate(entries) if position not in dropped]
