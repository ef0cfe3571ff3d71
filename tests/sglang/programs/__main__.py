"""Runs the programs of this folder, each in a child of one process that has SGLang already: importing it takes seconds.

    python -m tests.sglang.programs

A line of standard input names a program and its arguments, as a JSON list; a line of standard output answers with the
program's exit status and what it printed. Whatever a program changes in SGLang is gone with its child.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from tempfile import TemporaryFile
from typing import NoReturn

from enginepool.engines.sglang import warm


def answer(program: str, *arguments: str) -> tuple[int, str]:
    with TemporaryFile("w+") as printed:
        pid = os.fork()
        if pid == 0:
            os.dup2(printed.fileno(), sys.stdout.fileno())
            run(program, arguments)
        _, status = os.waitpid(pid, 0)
        printed.seek(0)
        return os.waitstatus_to_exitcode(status), printed.read()


def run(program: str, arguments: tuple[str, ...]) -> NoReturn:
    status = 0
    try:
        importlib.import_module(f"tests.sglang.programs.{program}").main(*arguments)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


def main() -> None:
    warm(gpu=False)
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
