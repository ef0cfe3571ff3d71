"""What an engine answers while a request raises somewhere in SGLang's loop, beside others that do not.

`poison FOLDER` prints the `Report` of each place as JSON. It changes SGLang: there is an error at that
place whenever a poisonous request takes part, known by the length that it asks for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from enginepool.engines.sglang import SglangEngine
from enginepool.engines.sglang.protocol import StartRank
from enginepool.messages import Done, Manifest, ModelSpec, Reply, SegmentRef, Submit
from tests.sglang.programs.scarce import POOL, Gateway, in_child

POISON = 13
"""Tokens that a poisonous request asks for."""
TOKENS = 40
"""Of the others' answers."""
MAX_RUNNING = 8
REGEX = "[a-z ]{60}"

NEIGHBOURS: tuple[dict[str, Any], ...] = (
    {"prompt": "Once upon a time"},
    {"prompt": "A gate opens", "logprobs": 2},
    {"prompt": "The sky is blue", "logit_bias": {"100": 30}, "frequency_penalty": 1.5},
    {
        "prompt": "The sky is red",
        "logit_bias": {str(it): 30 + it / 100 for it in range(100, 120)},
        "presence_penalty": 2,
    },
    {"prompt": "Two birds", "logit_bias": {"100": 30}, "repetition_penalty": 1.9},
    {"prompt": "Old birds", "logit_bias": {"0": 40}, "min_tokens": 30, "ignore_eos": False},
    {"prompt": "She said", "regex": REGEX},
)


@dataclass
class Report:
    neighbours: list[str]
    """Their answers."""
    poisonous: int
    """Status."""
    same_rank: bool


def is_poisonous(req: Any) -> bool:
    return bool(req.sampling_params.max_new_tokens == POISON)


def poison(owner: Any, name: str, is_reached: Callable[..., bool]) -> None:
    """Have a method raise, once it has done its work."""
    method = getattr(owner, name)

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        if is_reached(*args, **kwargs):
            raise RuntimeError("poisoned")
        return result

    setattr(owner, name, poisoned)


def takes_part(batch: Any, *rest: Any) -> bool:
    return any(is_poisonous(req) for req in batch.reqs)


def decodes(batch: Any) -> bool:
    return takes_part(batch) and any(req.output_ids for req in batch.reqs if is_poisonous(req))


def in_company(batch: Any) -> bool:
    return takes_part(batch) and len(batch.reqs) > 1


def nowhere() -> None:
    """Nobody is poisonous."""


def taking() -> None:
    from sglang.srt.managers.scheduler import Scheduler

    poison(Scheduler, "init_req_max_new_tokens", lambda scheduler, req: is_poisonous(req))


def choosing() -> None:
    from sglang.srt.managers.schedule_batch import Req

    poison(Req, "init_next_round_input", lambda req, *rest: is_poisonous(req))


def assembling() -> None:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    poison(ScheduleBatch, "prepare_for_extend", takes_part)


def merging() -> None:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    poison(ScheduleBatch, "merge_batch", takes_part)


def preparing_to_decode() -> None:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    poison(ScheduleBatch, "prepare_for_decode", takes_part)


def company() -> None:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    poison(ScheduleBatch, "prepare_for_decode", in_company)


def prefilling() -> None:
    from sglang.srt.managers.tp_worker import TpModelWorker

    poison(TpModelWorker, "forward_batch_generation", lambda worker, batch, *rest, **named: takes_part(batch))


def decoding() -> None:
    from sglang.srt.managers.tp_worker import TpModelWorker

    poison(TpModelWorker, "forward_batch_generation", lambda worker, batch, *rest, **named: decodes(batch))


def reading_out() -> None:
    from sglang.srt.managers.schedule_batch import Req

    poison(Req, "update_finish_state", lambda req, *rest: is_poisonous(req) and len(req.output_ids) == 5)


def reading_out_the_last_token() -> None:
    from sglang.srt.managers.schedule_batch import Req

    poison(Req, "update_finish_state", lambda req, *rest: is_poisonous(req) and req.finished())


def sending() -> None:
    from sglang.srt.managers.scheduler_components.output_streamer import _GenerationStreamAccumulator

    poison(_GenerationStreamAccumulator, "accept", lambda sender, req: is_poisonous(req))


def counting() -> None:
    """After the tokens were sent."""
    from sglang.srt.managers.scheduler import Scheduler

    poison(Scheduler, "_record_step_counters", lambda scheduler, batch, result: takes_part(batch))


PLACES = (
    nowhere,
    taking,
    choosing,
    assembling,
    merging,
    preparing_to_decode,
    company,
    prefilling,
    decoding,
    reading_out,
    reading_out_the_last_token,
    sending,
    counting,
)


class Streaming(Gateway):
    """Plays the gateway, and keeps what streams bring."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks: dict[int, list[bytes]] = {}

    def emit(self, output: Any) -> None:
        if hasattr(output, "data"):
            self.chunks.setdefault(output.request, []).append(output.data)
        super().emit(output)

    def stream(self, engine: SglangEngine, **fields: Any) -> int:
        request = next(self._serials)
        body = {"model": "m", "temperature": 0, "ignore_eos": True, "max_tokens": TOKENS, "stream": True, **fields}
        engine.submit(Submit(request, "/v1/completions", json.dumps(body).encode(), float(request)))
        return request

    def said(self, request: int) -> str:
        """All that a stream said of its answer, text and log probabilities, in one line."""
        events = b"".join(self.chunks.get(request, ())).split(b"\n\n")
        bodies = [json.loads(it.removeprefix(b"data: ")) for it in events if it.startswith(b"data: {")]
        choices = [choice for body in bodies for choice in body.get("choices", ())]
        text = "".join(it["text"] for it in choices)
        probable = [token for it in choices if it.get("logprobs") for token in it["logprobs"]["tokens"]]
        return f"{text} {probable} {_status(self.answers[request])}"


def _status(answer: Any) -> int:
    if isinstance(answer, Reply):
        return answer.status
    assert isinstance(answer, Done)
    return 500 if answer.error else 200


async def ask_all(engine: SglangEngine, gateway: Streaming) -> tuple[list[str], int]:
    """A poisonous request comes as soon as all others have begun, and another one with the last of them."""
    *early, late = NEIGHBOURS
    requests = [gateway.stream(engine, **fields) for fields in early]
    await gateway.until(lambda: all(it in gateway.chunks for it in requests))
    poisonous = [gateway.stream(engine, prompt="Poison", max_tokens=POISON)]
    requests.append(gateway.stream(engine, **late))
    poisonous.append(gateway.stream(engine, prompt="Venom", max_tokens=POISON))
    await gateway.all([*requests, *poisonous])
    statuses = {_status(gateway.answers[it]) for it in poisonous}
    assert len(statuses) == 1, statuses
    return [gateway.said(it) for it in requests], statuses.pop()


def play(place: Callable[[], None], model: ModelSpec, manifest: Manifest, segment: SegmentRef) -> Report:
    place()

    async def run() -> Report:
        gateway = Streaming()
        engine = SglangEngine(gateway.emit, StartRank("cpu", 1, MAX_RUNNING, POOL))
        await engine.start()
        rank = engine._rank.pid
        await engine.activate(model, manifest, segment, verify=False)
        neighbours, status = await ask_all(engine, gateway)
        await engine.park()  # which it can only when idle, with nothing left
        same_rank = engine._rank.pid == rank and not engine._rank.died.done()
        await engine.close()
        return Report(neighbours, status, same_rank)

    return uvloop.run(run())


def main(folder: str) -> None:
    from enginepool.engines.sglang.loading import weights

    model = ModelSpec("m", folder, "float32", {})
    manifest, held = weights.load(model, lambda done, total: None, max_running=MAX_RUNNING, device="cpu")
    with held:
        reports = {it.__name__: asdict(in_child(play, it, model, manifest, held.ref)) for it in PLACES}
    print(json.dumps(reports))
