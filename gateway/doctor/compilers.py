"""Compilers: for kvcached at its installation, and for kernels, compiled on demand by Triton, SGLang and flashinfer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from gateway.doctor.finding import Finding, failed, ok

PATIENCE = 30.0
"""Seconds for a compiler to answer."""
OLDEST_GCC = 9
"""For the C++17 of torch's headers and the C++20 of some kernels."""
_PROGRAM = "#include <filesystem>\nint main() { return 0; }\n"


def check_cxx(environment: Mapping[str, str]) -> Finding:
    """A C++ compiler that finds its own library."""
    fix = "install one (Debian, Ubuntu: apt-get install build-essential; Fedora: dnf install gcc-c++)"
    name = environment.get("CXX") or ("c++" if shutil.which("c++") else "g++")
    if shutil.which(name) is None:
        return failed("C++ compiler", f"there is no {name}", fix)
    compiled = _output([name, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"], _PROGRAM)
    version = (_output([name, "-dumpfullversion", "-dumpversion"]) or "of unknown version").strip()
    if compiled is None:
        return failed("C++ compiler", f"{name} {version} cannot compile a program of one line", fix)
    if version.split(".")[0].isdigit() and int(version.split(".")[0]) < OLDEST_GCC and "clang" not in name:
        return failed("C++ compiler", f"{name} {version}; it takes {OLDEST_GCC} or newer", fix)
    return ok("C++ compiler", f"{name} {version}")


def check_python_headers() -> Finding:
    """Python.h of this interpreter: kvcached and Triton compile against it."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if header.exists():
        return ok("Python headers", str(header.parent))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    fix = f"Debian, Ubuntu: apt-get install python{version}-dev; Fedora: dnf install python{version}-devel"
    return failed("Python headers", f"there is no {header}", fix)


def check_cuda_compiler(environment: Mapping[str, str], needed: int) -> Finding:
    """nvcc of CUDA `needed` (major), with its headers, where SGLang and flashinfer look for it."""
    home = cuda_home(environment)
    fix = f"run `make gpu`, which brings nvcc along, or set CUDA_HOME to a toolkit of CUDA {needed}"
    if home is None or not Path(home, "bin", "nvcc").exists():
        return failed("CUDA compiler", f"no nvcc (CUDA_HOME is {environment.get('CUDA_HOME', 'not set')})", fix)
    found = re.search(r"release (\d+)\.(\d+)", _output([str(Path(home, "bin", "nvcc")), "--version"]) or "")
    if found is None:
        return failed("CUDA compiler", f"{home}/bin/nvcc does not run", fix)
    if int(found[1]) != needed:
        return failed("CUDA compiler", f"{home} has CUDA {found[1]}.{found[2]}, torch has {needed}", fix)
    if not Path(home, "include", "cuda_runtime.h").exists():
        return failed("CUDA compiler", f"{home} has no include/cuda_runtime.h", fix)
    return ok("CUDA compiler", f"nvcc {found[1]}.{found[2]} in {home}")


def cuda_home(environment: Mapping[str, str]) -> str | None:
    """As SGLang, flashinfer and tvm_ffi find it."""
    if home := environment.get("CUDA_HOME") or environment.get("CUDA_PATH"):
        return home
    if nvcc := shutil.which("nvcc", path=environment.get("PATH", os.defpath)):
        return str(Path(nvcc).parent.parent)
    return "/usr/local/cuda" if Path("/usr/local/cuda").exists() else None


def check_ninja(environment: Mapping[str, str]) -> Finding:
    """SGLang and flashinfer start it by its name."""
    if found := shutil.which("ninja", path=environment.get("PATH", os.defpath)):
        return ok("ninja", found)
    return failed("ninja", "there is none on PATH", "run `make gpu`, or pip install ninja")


def _output(command: list[str], text: str = "") -> str | None:
    try:
        done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
