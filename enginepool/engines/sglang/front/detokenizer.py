"""Runs SGLang's DetokenizerManager in a thread of the front that can be stopped."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import zmq
from sglang.srt.managers.detokenizer_manager import DetokenizerManager
from sglang.srt.managers.io_struct import sock_recv, sock_send

from enginepool.engines.sglang.upstream import close_sockets

log = logging.getLogger("prism.sglang")


class DetokenizerThread:
    def __init__(self, server_args: Any, port_args: Any) -> None:
        self._manager = DetokenizerManager(server_args, port_args)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="detokenizer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread after the current batch and wait for it."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)
        close_sockets(self._manager.recv_from_scheduler, self._manager.send_to_tokenizer)

    def _run(self) -> None:
        """Root of the thread. If it fails, the worker ends, since nothing would be answered any more."""
        poller = zmq.Poller()
        poller.register(self._manager.recv_from_scheduler, zmq.POLLIN)
        poller.register(self._stop, zmq.POLLIN)
        try:
            while self._stop not in dict(poller.poll()):
                self._pass_on()
        except Exception:
            log.exception("the detokenizer failed; this worker ends")
            os._exit(1)

    def _pass_on(self) -> None:
        while True:
            try:
                message = sock_recv(self._manager.recv_from_scheduler, zmq.NOBLOCK)
            except zmq.Again:
                return
            output = self._manager._request_dispatcher(message)
            if output is not None:
                sock_send(self._manager.send_to_tokenizer, output)
