"""SGLang's TokenizerManager under the gateway's control: request ids, priorities, counts and limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any

from sglang.srt.managers.tokenizer_manager import TokenizerManager

from config.errors import RequestError
from config.registry import WorkLimits
from enginepool.engines.sglang.front.bounds import (
    LONG,
    bound,
    characters,
    check_logprobs,
    check_prompts,
    frozen,
    strings_of,
)
from enginepool.engines.sglang.front.field_check import check_fields
from enginepool.engines.sglang.front.grammar_checker import GrammarChecker
from enginepool.engines.sglang.front.large_requests import iterate_on
from enginepool.engines.sglang.front.requests import CURRENT, FrontRequest
from enginepool.engines.sglang.front.validation import check, check_answers, check_readable
from enginepool.openai.errors import took_too_long
from enginepool.own_thread import ThreadEnded, TookTooLong, run_in_own_thread

GENERATE = "/generate"
"""The route whose body is SGLang's own request class."""
_NOT_A_CLIENTS = (
    "rid",
    "http_worker_ipc",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "bootstrap_pair_key",
    "routed_dp_rank",
    "disagg_prefill_dp_rank",
    "external_trace_header",
    "encoder_urls",
    "need_wait_for_mm_inputs",
    "num_items_assigned",
    "mm_data_mooncake",
)
"""Fields that SGLang's processes use among themselves but that /generate accepts from anybody."""


class FrontTokenizerManager(TokenizerManager):  # type: ignore[misc]
    """Written for SGLang 0.5.17. `max_req_input_len` must be set once the rank is built."""

    event_loop: asyncio.AbstractEventLoop | None

    def __init__(self, server_args: Any, port_args: Any) -> None:
        self._live: dict[str, FrontRequest] = {}
        super().__init__(server_args, port_args)
        self.model_path = self.served_model_name  # the model's name in answers

    def auto_create_handle_loop(self) -> None:
        """Create the handler task only; SGLang's version would also replace the worker's signal handlers."""
        if self.event_loop is None:
            loop = asyncio.get_running_loop()
            self.event_loop = loop
            self.asyncio_tasks.add(loop.create_task(self.handle_loop()))

    def create_abort_task(self, obj: Any) -> None:
        """Do nothing: the gateway sends aborts, and SGLang's task would outlive the answer by two seconds."""

    def abort(self, live: FrontRequest) -> None:
        """Abort a request; SGLang's code that works on it ends by itself."""
        for rid in live.rids:
            self.abort_request(rid)
        live.gone.set()

    def forget(self, live: FrontRequest) -> None:
        """Drop the entries of a finished request, as SGLang has done with its own."""
        for rid in live.rids:
            self._live.pop(rid, None)

    def bind(self, limits: WorkLimits, grammars: GrammarChecker) -> None:
        """Set the limits for requests; to be called before the first one."""
        self._limits = limits
        self._grammars = grammars
        self._bounds = bound(self.tokenizer, self.max_req_input_len - 1, own_templates=limits.own_templates)

    async def generate_request(self, obj: Any, request: Any = None) -> AsyncIterator[Any]:
        main = self.event_loop
        assert main is not None
        outputs = self._generate(obj, request)
        async for output in outputs if asyncio.get_running_loop() is main else iterate_on(outputs, main):
            yield output

    async def _generate(self, obj: Any, request: Any) -> AsyncIterator[Any]:
        """Runs on the worker's event loop."""
        live = CURRENT.get()
        if live is not None:
            live.prepared.set()
        began = False
        try:
            if live is not None:
                if live.path == GENERATE:
                    check_fields(GENERATE, obj)
                _take_from_client(obj)
                obj.priority = live.priority
            check_answers(obj)
            check_prompts(obj, self._limits.prompts)
            await self._grammars.check(getattr(obj, "sampling_params", None), live)
            if live is not None:
                await self._tokenize_ahead(obj, live)
            async for output in super().generate_request(obj, request):
                began = True
                if live is not None and live.refusal is None:
                    live.refusal = _refusal(output)
                yield output
        except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
            if isinstance(error, ValueError):
                refused = error
            elif not began:  # SGLang accesses parts of a request without checking their types
                refused = ValueError(f"The request is malformed: {error}")
            else:
                raise
            if live is not None:
                live.refusal = RequestError(400, str(refused))
            raise refused from error

    def _init_req_state(self, obj: Any, request: Any = None, lifecycle_id: object = None) -> dict[str, object]:
        live = CURRENT.get()
        if live is not None and live.aborted:
            raise ValueError("The request was aborted.")
        lifecycles: dict[str, object] = super()._init_req_state(obj, request, lifecycle_id)
        if live is not None:
            live.rids += lifecycles
            self._live.update(dict.fromkeys(lifecycles, live))
        return lifecycles

    async def _tokenize_ahead(self, obj: Any, live: FrontRequest) -> None:
        """Tokenize the prompts of a request that has several in advance. Once SGLang begins to send them to the rank,
        it must not yield: it would miss the answers that arrive in between."""
        if isinstance(obj.text, list):
            pairs = bool(getattr(obj, "is_cross_encoder_request", False))
            for text in obj.text:
                if text and (key := frozen(text)) not in live.tokens:
                    live.tokens[key] = await self._tokenize_texts(text, pairs)
                    await asyncio.sleep(0)  # let streams proceed between prompts

    async def _tokenize_texts(self, texts: Any, is_cross_encoder: bool = False) -> Any:
        """Tokenize texts, long ones in a thread of their own."""
        live = CURRENT.get()
        if live is not None and (key := frozen(texts)) in live.tokens:
            return live.tokens[key]
        if live is None or characters(texts) <= LONG:
            return await super()._tokenize_texts(texts, is_cross_encoder)
        work = partial(self._tokenize_long, texts, super()._tokenize_texts(texts, is_cross_encoder))
        try:
            return await run_in_own_thread(work, self._limits.preparation, live.gone)
        except TookTooLong as error:
            raise ValueError(str(took_too_long(self._limits.preparation))) from error
        except ThreadEnded as error:
            raise ValueError("The request was aborted.") from error

    def _tokenize_long(self, texts: Any, tokenizing: Coroutine[Any, Any, Any]) -> Any:
        """Called in the thread. Runs SGLang's coroutine by hand, which works because it never awaits anything."""
        try:
            for text in strings_of(texts):
                self._bounds.check(text, lambda piece: self.tokenizer(piece)["input_ids"])
            tokenizing.send(None)
        except StopIteration as returned:
            return returned.value
        finally:
            tokenizing.close()
        raise RuntimeError("SGLang awaits something while tokenizing")

    def _validate_one_request(self, obj: Any, input_ids: Any) -> None:
        tokens, limit = len(input_ids or ()), self.max_req_input_len
        if tokens >= limit:
            raise ValueError(f"The input ({tokens} tokens) is longer than this worker can take ({limit - 1} tokens).")
        check(obj, input_ids, self.model_config, is_generation=self.is_generation)
        check_logprobs(obj, tokens, self._limits.logprobs)
        super()._validate_one_request(obj, input_ids)

    def _create_tokenized_object(self, obj: Any, input_text: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Called for each prompt after SGLang's front half has processed it and before the rank sees it."""
        tokenized = super()._create_tokenized_object(obj, input_text, input_ids, *args, **kwargs)
        check_readable(tokenized)
        live = CURRENT.get()
        if live is not None:
            if live.aborted:
                raise ValueError("The request was aborted.")
            live.add_prompt(len(input_ids or ()))
        return tokenized

    async def _handle_batch_output(self, recv_obj: Any) -> None:
        counts = getattr(recv_obj, "completion_tokens", None) or [0] * len(recv_obj.rids)
        for rid, tokens in zip(recv_obj.rids, counts, strict=True):
            live = self._live.get(rid)
            if live is not None:
                live.set_output(rid, tokens)
        await super()._handle_batch_output(recv_obj)


def _refusal(output: Any) -> RequestError | None:
    """Why the rank aborted a request, if this is its last output and it did; else None."""
    reason = output.get("meta_info", {}).get("finish_reason") if isinstance(output, dict) else None
    if not reason or reason.get("type") != "abort" or not reason.get("status_code"):
        return None
    status = int(reason["status_code"])
    return RequestError(status, reason["message"], kind="server_error" if status >= 500 else "invalid_request_error")


def _take_from_client(obj: Any) -> None:
    for name in _NOT_A_CLIENTS:
        if getattr(obj, name, None) is not None:
            setattr(obj, name, None)
