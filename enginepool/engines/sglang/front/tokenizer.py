"""SGLang's TokenizerManager with the gateway's say: request ids, priorities, counts, and what is too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sglang.srt.managers.tokenizer_manager import TokenizerManager

from config.errors import RequestError
from enginepool.engines.sglang.front.allowing import check_fields
from enginepool.engines.sglang.front.requests import CURRENT, LiveRequest
from enginepool.engines.sglang.front.validation import check, check_answers, check_readable

GENERATE = "/generate"
"""The route whose body is SGLang's own request."""
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
"""Fields of a request by which SGLang's processes speak to each other, and which its /generate takes from anybody."""


class FrontTokenizerManager(TokenizerManager):  # type: ignore[misc]
    """Overrides are of SGLang 0.5.17. `max_req_input_len` is to be set once the rank is built."""

    event_loop: asyncio.AbstractEventLoop | None

    def __init__(self, server_args: Any, port_args: Any) -> None:
        self._live: dict[str, LiveRequest] = {}
        super().__init__(server_args, port_args)
        self.model_path = self.served_model_name  # what answers call the model

    def auto_create_handle_loop(self) -> None:
        """Only the task: SGLang's own would take the process's signal handlers, which are the worker's."""
        if self.event_loop is None:
            loop = asyncio.get_running_loop()
            self.event_loop = loop
            self.asyncio_tasks.add(loop.create_task(self.handle_loop()))

    def create_abort_task(self, obj: Any) -> None:
        """None: aborts are the gateway's, and SGLang's task would outlive the answer by two seconds."""

    def abort(self, live: LiveRequest) -> None:
        """Drop a request; SGLang's code on its behalf ends by itself."""
        for rid in live.rids:
            self.abort_request(rid)
        live.gone.set()

    def forget(self, live: LiveRequest) -> None:
        """It has an end; SGLang has dropped its own entries."""
        for rid in live.rids:
            self._live.pop(rid, None)

    async def generate_request(self, obj: Any, request: Any = None) -> AsyncIterator[Any]:
        live = CURRENT.get()
        began = False
        try:
            if live is not None:
                if live.path == GENERATE:
                    check_fields(GENERATE, obj)
                _take_from_client(obj)
                obj.priority = live.priority
            check_answers(obj)
            async for output in super().generate_request(obj, request):
                began = True
                if live is not None and live.refusal is None:
                    live.refusal = _refusal(output)
                yield output
        except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
            if isinstance(error, ValueError):
                refused = error
            elif not began:  # SGLang looks into a request without asking what its parts are
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

    def _validate_one_request(self, obj: Any, input_ids: Any) -> None:
        tokens, limit = len(input_ids or ()), self.max_req_input_len
        if tokens >= limit:
            raise ValueError(f"The input ({tokens} tokens) is longer than this worker can take ({limit - 1} tokens).")
        check(obj, input_ids, self.model_config, is_generation=self.is_generation)
        super()._validate_one_request(obj, input_ids)

    def _create_tokenized_object(self, obj: Any, input_text: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Where SGLang's front half is done with one prompt, and before the rank sees it."""
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
    """Why the rank has ended a request before its time, if this is its last output and it did."""
    reason = output.get("meta_info", {}).get("finish_reason") if isinstance(output, dict) else None
    if not reason or reason.get("type") != "abort" or not reason.get("status_code"):
        return None
    status = int(reason["status_code"])
    return RequestError(status, reason["message"], kind="server_error" if status >= 500 else "invalid_request_error")


def _take_from_client(obj: Any) -> None:
    for name in _NOT_A_CLIENTS:
        if getattr(obj, name, None) is not None:
            setattr(obj, name, None)
