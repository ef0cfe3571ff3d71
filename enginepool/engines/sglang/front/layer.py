"""The front's half of one model: SGLang's tokenizer manager, detokenizer and OpenAI layer, created for each model."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from sglang.srt.entrypoints import http_server
from sglang.srt.entrypoints.engine import init_tokenizer_manager
from sglang.srt.entrypoints.openai.serving_classify import OpenAIServingClassify
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion
from sglang.srt.entrypoints.openai.serving_embedding import OpenAIServingEmbedding
from sglang.srt.entrypoints.openai.serving_rerank import OpenAIServingRerank
from sglang.srt.entrypoints.openai.serving_score import OpenAIServingScore
from sglang.srt.entrypoints.openai.serving_tokenize import OpenAIServingDetokenize, OpenAIServingTokenize
from sglang.srt.managers.io_struct import ShutdownReq, wrap_as_pickle
from sglang.srt.managers.tokenizer_manager import ServerStatus

from enginepool.engines.sglang.front.detokenizer import DetokenizerThread
from enginepool.engines.sglang.front.field_check import answering_400, guard
from enginepool.engines.sglang.front.responses import serving_responses
from enginepool.engines.sglang.front.tokenizer import FrontTokenizerManager
from enginepool.engines.sglang.protocol import Built, Command
from enginepool.engines.sglang.upstream import bind_unused, close_sockets

IDLE_TIMEOUT = 60.0
"""Seconds for the rank to finish its last step before parking fails."""


class OpenAILayer:
    """SGLang has one application per process, `app`, so there is only one layer at a time."""

    app = answering_400(http_server.app)

    def __init__(self, server_args: Any, port_args: Any) -> None:
        self.manager, templates = init_tokenizer_manager(server_args, port_args, FrontTokenizerManager)
        self._detokenizer = DetokenizerThread(server_args, port_args)
        self._unused = bind_unused(port_args)
        self._install(templates)

    def serve(self, built: Built) -> None:
        """Begin to serve, once the rank is built."""
        self.manager.max_req_input_len = built.max_input
        self.manager.server_status = ServerStatus.Up
        self.manager.auto_create_handle_loop()

    async def flush(self) -> bool:
        """Wait until the rank is idle and drop its prefix cache; returns whether that succeeded."""
        result = await self.manager.flush_cache(timeout_s=IDLE_TIMEOUT)
        return bool(result.success)

    def command_rank(self, command: Command) -> None:
        """Have the rank execute a command between two steps; it answers on the private connection."""
        self.manager._dispatch_to_scheduler(wrap_as_pickle(command))

    def shut_down_rank(self) -> None:
        """Make the rank leave its loop."""
        self.manager._dispatch_to_scheduler(ShutdownReq())

    async def close(self) -> None:
        """Drop everything. The rank must have stopped using it."""
        tasks = self.manager.asyncio_tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._detokenizer.close()
        close_sockets(self.manager.recv_from_detokenizer, self.manager.send_to_scheduler, self._unused)
        self.manager.load_snapshot_reader.close()
        http_server.set_global_state(None)
        self.app.state._state.clear()
        del self.manager, self._detokenizer
        await asyncio.sleep(0)  # lets the event loop release the cancelled tasks
        gc.collect()

    def _install(self, templates: Any) -> None:
        """Do what SGLang's `lifespan` does at server start, for the routes that are served."""
        manager, state = self.manager, self.app.state
        http_server.set_global_state(http_server._GlobalState(manager, templates, {}))
        state.openai_serving_completion = guard(OpenAIServingCompletion(manager, templates))
        state.openai_serving_chat = guard(manager.serving_chat_class(manager, templates))
        state.openai_serving_responses = serving_responses(manager, templates)
        state.openai_serving_embedding = guard(OpenAIServingEmbedding(manager, templates))
        state.openai_serving_classify = guard(OpenAIServingClassify(manager, templates))
        state.openai_serving_score = guard(OpenAIServingScore(manager))
        state.openai_serving_rerank = guard(OpenAIServingRerank(manager, templates))
        state.openai_serving_tokenize = guard(OpenAIServingTokenize(manager, templates))
        state.openai_serving_detokenize = guard(OpenAIServingDetokenize(manager))
