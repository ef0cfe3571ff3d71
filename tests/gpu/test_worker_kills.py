"""A process of a worker is killed under load: its streams end, its GPU memory comes back, and all else goes on."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil
import pytest

from bench.subjects.device_memory import DeviceMemory
from tests.gpu.settings import MODELS, PROMPTS, SLACK, answer
from tests.rig.asking import session, streaming
from tests.rig.serving import Prism

pytestmark = pytest.mark.gpu

HIT, OTHER = MODELS[:2]
LONG = 4000
"""Tokens of an answer that is under way when its worker is killed."""


def rank_of(front: psutil.Process) -> psutil.Process:
    (rank,) = front.children()
    return rank


def template_of(prism: Prism) -> psutil.Process:
    children = psutil.Process(prism.process.pid).children()
    (template,) = (it for it in children if "enginepool.pool.template" in it.cmdline() and os.getsid(it.pid) == it.pid)
    return template


def kill_front(prism: Prism, front: psutil.Process) -> None:
    front.kill()


def kill_rank(prism: Prism, front: psutil.Process) -> None:
    rank_of(front).kill()


def kill_template_and_front(prism: Prism, front: psutil.Process) -> None:
    """A template that is gone is missed when the next worker is to be forked."""
    template_of(prism).kill()
    front.kill()


@pytest.mark.parametrize("kill", [kill_rank, kill_front, kill_template_and_front])
async def test_a_kill_costs_only_the_streams_of_its_worker(
    prism: Prism, memory: DeviceMemory, kill: Callable[[Prism, psutil.Process], None]
) -> None:
    answer(prism, HIT, PROMPTS[0])
    answer(prism, OTHER, PROMPTS[0])
    async with session(prism) as client, streaming(client, HIT, LONG) as hit, streaming(client, OTHER, LONG) as other:
        number = next(it.worker for it in prism.status().workers if it.model == HIT)
        front, used = psutil.Process(prism.pid(number)), memory.used
        rank = rank_of(front)
        kill(prism, front)
        assert b'"error"' in await hit.read()
        await other.readuntil(b"\n\n")
        prism.wait_until(lambda _: not front.is_running() and not rank.is_running(), "both are gone")
        prism.wait_until(lambda s: s.workers[number].state == "blank", "it is replaced")
        prism.wait_until(lambda _: memory.used <= used + SLACK, "the GPU's memory is back")
        assert len(answer(prism, HIT, PROMPTS[0])) > 0
        await other.readuntil(b"\n\n")
    assert memory.used <= used + SLACK
