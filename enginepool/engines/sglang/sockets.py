"""The files through which front and rank connect: one folder per model, removed together with it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

PREFIX = "sgl-"
_SHARED = Path("/dev/shm")
_KV_PREFIX = "prism-kv-"


def kv_name(owner: int) -> str:
    """The name for kvcached's files in /dev/shm, for the rank of the front with process id `owner`."""
    return f"{_KV_PREFIX}{owner}-rank"


def sweep() -> None:
    """Remove files of killed workers, from TMPDIR, which only this gateway's workers use, and from /dev/shm."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        if _is_orphan(folder.name.removeprefix(PREFIX)):
            shutil.rmtree(folder, ignore_errors=True)
    for file in _SHARED.glob(f"{_KV_PREFIX}*-*"):
        if _is_orphan(file.name.removeprefix(_KV_PREFIX)):
            file.unlink(missing_ok=True)


def remove_kv_file() -> None:
    """Remove the /dev/shm files of this front's rank, which has ended."""
    for file in _SHARED.glob(f"{kv_name(os.getpid())}*"):  # kvcached appends to the name
        file.unlink(missing_ok=True)


def _is_orphan(name: str) -> bool:
    """Whether the owner of a file, whose process id begins `name`, is gone."""
    owner = name.partition("-")[0]
    return owner.isdecimal() and not Path("/proc", owner).exists()


class SocketFolder:
    """ZeroMQ's socket files, the load snapshot and torch's rendezvous file of one model in one worker."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))

    @property
    def rendezvous(self) -> str:
        return str(self.path / "group")

    def port_args(self) -> Any:
        from sglang.srt.server_args import PortArgs

        return PortArgs(
            tokenizer_ipc_name=self._address("tokenizer"),
            scheduler_input_ipc_name=self._address("scheduler"),
            detokenizer_ipc_name=self._address("detokenizer"),
            rpc_ipc_name=self._address("rpc"),
            metrics_ipc_name=self._address("metrics"),
            tokenizer_worker_ipc_name=None,
            decoupled_spec_ipc_config=None,
            nccl_port=0,
            instance_id=str(self.path),
        )

    def remove(self) -> None:
        """May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _address(self, name: str) -> str:
        return f"ipc://{self.path / name}"
