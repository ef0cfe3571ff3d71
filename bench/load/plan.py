"""Turns a load test's command line into its requests and objectives."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bench.load.outcomes import ClientSlo
from bench.load.workload import Arrival, arrival_times, draw_models
from simulator.errors import UsageError
from simulator.progress import say
from simulator.traces.readers import names_models, read_trace
from simulator.traces.trace import map_models


def choose_models(wanted: str, listed: Mapping[str, ClientSlo]) -> list[str]:
    """Select the models to load from those the server has. Raises: UsageError."""
    if wanted == "all":
        return list(listed)
    names = wanted.split(",")
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise UsageError(f"--models: the server has no {', '.join(unknown)}; it has {', '.join(listed)}")
    return names


def make_plan(chosen: argparse.Namespace, models: Sequence[str]) -> list[Arrival]:
    """Plan all requests of the run, in order. Raises: StudyError."""
    rng = np.random.default_rng(chosen.seed)
    if chosen.trace is None:
        times = arrival_times(chosen.rate, chosen.duration, chosen.burstiness, rng)
        plan = [Arrival(at, "", chosen.prompt_tokens.draw(rng), chosen.output_tokens.draw(rng)) for at in times]
    else:
        plan = plan_of_trace(chosen, models)
    drawn = draw_models(models, chosen.popularity, len(plan), rng)
    plan = [
        arrival if arrival.model else replace(arrival, model=name) for arrival, name in zip(plan, drawn, strict=True)
    ]
    if not plan:
        raise UsageError("no request arrives in that duration at that rate")
    return [cap(arrival, chosen) for arrival in plan]


def plan_of_trace(chosen: argparse.Namespace, models: Sequence[str]) -> list[Arrival]:
    """Plan the requests of a trace with the given length, time scale, rate and models. Raises: StudyError."""
    trace = read_trace(chosen.trace, duration=chosen.duration, rate=chosen.rate, seed=chosen.seed).stored()
    mapping = map_models(trace, models) if names_models(chosen.trace) else {}
    for name, stand_in in mapping.items():
        say(f"trace: {name} is {stand_in}")
    return [
        Arrival(
            request.at * chosen.time_scale, mapping.get(request.model, ""), request.prompt_tokens, request.output_tokens
        )
        for request in trace
    ]


def cap(arrival: Arrival, chosen: argparse.Namespace) -> Arrival:
    return replace(
        arrival,
        prompt_tokens=min(arrival.prompt_tokens, chosen.max_prompt_tokens or arrival.prompt_tokens),
        output_tokens=min(arrival.output_tokens, chosen.max_tokens or arrival.output_tokens),
    )


def objectives(
    chosen: argparse.Namespace, listed: Mapping[str, ClientSlo], models: Sequence[str]
) -> dict[str, ClientSlo]:
    """Each model's objectives in seconds, from the command line or else as stated by the server."""
    return {
        name: ClientSlo(
            listed[name].ttft if chosen.slo_ttft is None else chosen.slo_ttft,
            listed[name].tpot if chosen.slo_tpot is None else chosen.slo_tpot,
        )
        for name in models
    }
