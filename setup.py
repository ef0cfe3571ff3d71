"""What pyproject.toml cannot say: in a wheel, Prism's packages lie below `prism_serving` (see its docstring)."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NAME = "prism_serving"


class BelowOneName(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        built = Path(self.build_lib)
        for package in {name.partition(".")[0] for name in self.packages} - {NAME}:
            shutil.rmtree(built / NAME / package, ignore_errors=True)
            (built / package).rename(built / NAME / package)


setup(cmdclass={"build_py": BelowOneName})
