"""The one name that an installed Prism takes. Its packages lie below it, so that they collide with nobody's.

They import each other by the names that they have in the repository (`gateway`, `config` and so on), so this folder
comes first on the path of Prism's own processes, and of those only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """The command `prism`."""
    if (HERE / "gateway").is_dir():  # not in a checkout
        sys.path.insert(0, str(HERE))
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{inherited}" if inherited else str(HERE)
    from gateway.cli import main as prism

    prism()
