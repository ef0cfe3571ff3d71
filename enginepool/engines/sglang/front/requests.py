"""The requests in the engine: who they are to the gateway and to SGLang, and what is counted of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Any

from config.errors import RequestError
from enginepool.engine import EngineLoad
from enginepool.messages import Submit

Changed = Callable[["FrontRequest"], None]


class FrontRequest:
    """One request of the gateway. It may be several of SGLang's (a list of prompts, `n` answers)."""

    def __init__(self, submit: Submit, load: EngineLoad, counted: Changed) -> None:
        self.id = submit.request
        self.path = submit.path
        self.body = submit.body
        self.priority = int(submit.deadline * 1000)
        """Milliseconds; SGLang serves lower values first."""
        self.prompt_tokens = 0
        self.refusal: RequestError | None = None
        """Why SGLang gives it up: its own answer may be an event of a stream that has status 200."""
        self.gone = asyncio.Event()
        self.prepared = asyncio.Event()
        """The tokenizer manager has it: body and chat template are done with."""
        self.tokens: dict[Hashable, Any] = {}
        """What its texts are as tokens, where that was found out before SGLang asks."""
        self.rids: list[str] = []
        """SGLang's ids for it, made by SGLang: no client can choose one."""
        self._load = load
        self._counted = counted
        self._outputs: dict[str, int] = {}
        load.waiting += 1

    @property
    def aborted(self) -> bool:
        return self.gone.is_set()

    @property
    def output_tokens(self) -> int:
        return sum(self._outputs.values())

    def add_prompt(self, tokens: int) -> None:
        self.prompt_tokens += tokens
        self._counted(self)

    def set_output(self, rid: str, tokens: int) -> None:
        """`tokens` is how many there are by now for this one of SGLang's requests."""
        if not self._outputs:
            self._load.waiting -= 1
            self._load.running += 1
            self._load.prompt_tokens += self.prompt_tokens
        self._load.output_tokens += tokens - self._outputs.get(rid, 0)
        self._outputs[rid] = tokens

    def close(self) -> None:
        """It has left the engine."""
        if self._outputs:
            self._load.running -= 1
        else:
            self._load.waiting -= 1


CURRENT: ContextVar[FrontRequest | None] = ContextVar("prism_request", default=None)
"""The request in whose task SGLang's code runs."""
