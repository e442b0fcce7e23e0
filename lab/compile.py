"""Compiles one file of C or C++ into a library for ctypes, once: the result is kept and found again.

    library = compile_library(ROOT / "lab" / "compiled_decoder.cpp")      # a ctypes.CDLL

Nothing in the project needs a compiler: whoever calls this has a plain PyTorch path to fall back on.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

from lab.files import ROOT, temporary_beside

COMPILERS = {".c": ("CC", "cc", "gcc", "clang"), ".cpp": ("CXX", "c++", "g++", "clang++")}  # a variable, then names
# "native": with every instruction that this processor has, which compilers for ARM say in another way.
NATIVE = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
FLAGS = ("-O3", NATIVE, "-fPIC", "-shared")


class CompileError(RuntimeError):
    """There is no compiler here, or it failed; the message is one line that says which."""


def compile_library(
    source: Path, flags: tuple[str, ...] = FLAGS, say: Callable[[str], object] | None = None
) -> ctypes.CDLL:
    """The library made from `source`, from the cache where it was made before. Takes seconds the first time.

    `say` is called with one line when it has to be made.

    It is kept under the hash of the source, the flags, the compiler's version and the processor, so that a file made
    for another machine is never loaded. Raises CompileError.
    """
    try:
        return ctypes.CDLL(str(built(source, flags, say)))
    except OSError as error:  # the cache can't be written to, or nothing may be run from it
        raise CompileError(f"{source.name} can't be compiled or loaded: {error}") from error


def built(source: Path, flags: tuple[str, ...] = FLAGS, say: Callable[[str], object] | None = None) -> Path:
    """Where the library made from `source` lies; makes it if it is not there. Raises CompileError."""
    compiler = find_compiler(source.suffix)
    key = repr((source.read_bytes(), flags, compiler, _version(compiler), _processor()))
    folder = Path(os.environ.get("SANDBOX_CACHE") or ROOT / ".cache") / "compiled"
    library = folder / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        if say is not None:
            say(f"compiling {source.name} with {Path(compiler[0]).name}; this happens once and takes a few seconds")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(library)
        try:
            _run([*compiler, *flags, str(source), "-o", str(temporary), "-lm"])
            os.replace(temporary, library)  # two processes may do this at once: each replaces a whole file by a whole
        finally:
            temporary.unlink(missing_ok=True)
    return library


def find_compiler(suffix: str) -> tuple[str, ...]:
    """The command that compiles files of that suffix: CC's or CXX's value, else the first one found."""
    variable, *names = COMPILERS[suffix]
    if os.environ.get(variable):
        return tuple(shlex.split(os.environ[variable]))
    for name in names:
        if found := shutil.which(name):
            return (found,)
    raise CompileError(f"no compiler was found ({', '.join(names)}; the variable {variable} may name one)")


@cache
def _version(compiler: tuple[str, ...]) -> str:
    return _run([*compiler, "--version"])


@cache
def _processor() -> str:
    """What the processor can do, as far as the system tells: a library for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    wanted = ("model name", "flags", "CPU part", "Features")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(wanted)}))


def _run(command: list[str]) -> str:
    """Runs a compiler; returns what it printed. Raises CompileError with the first line of its complaint."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{command[0]} can't be run ({error})") from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["it printed nothing"]
        complaint = next((line for line in lines if "error: " in line), lines[0])
        raise CompileError(f"{command[0]} failed with status {result.returncode}: {complaint}")
    return result.stdout
