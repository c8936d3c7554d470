"""Test runs that start warm: one process imports torch and its like once, and each run is a fork of it.

A program of its own, run by its path (`python -P warm_tests.py`) in the root of a checkout, so that nothing of this
project is imported before the fork: each run imports the project's modules as they then stand on the disk. It reads one
JSON object a line, `{"tests": [...], "timeout": seconds, "warm": false}`, runs those tests until the first that fails,
and answers with one, `{"code": ..., "seconds": ..., "output": ...}`: pytest's exit code, null after the timeout, and
the end of what it printed. With `"warm"` it keeps compiled files, and imports for all later runs what this one
imported from elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

MEMORY = 12 * 2**30
"""Bytes of address space that one run may take: a mutant may ask for memory without end."""
TAIL = 4000
"""Characters of a run's output that are kept."""


def imported(root: Path) -> list[str]:
    """The modules loaded here that are not the checkout's own."""
    own = str(root)
    return [
        name
        for name, module in list(sys.modules.items())
        if (where := getattr(module, "__file__", None)) and not str(Path(where).resolve()).startswith(own)
    ]


def tests(names: list[str], output: Path, loaded: Path | None) -> int:
    """Run pytest in this process, which is a fork, with everything that it prints in a file."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sink = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    if loaded is None:  # a compiled file of a mutant's code could outlive it
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    import pytest

    root = Path.cwd().resolve()
    # what this process had imported before pytest began cannot have its assertions explained, which would be an error
    warm = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *warm, *names]))
    package = sys.modules.get("fastercache")
    if package is not None and root not in Path(str(package.__file__)).resolve().parents:
        print(f"\nthe package that was tested lies outside {root}: {package.__file__}", flush=True)
        code = 4
    if loaded is not None:
        loaded.write_text(json.dumps(imported(root)))
    return code


def forked(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One run in a fork, ended with all its children after the timeout."""
    output, loaded = folder / "output", folder / "loaded"
    for file in (output, loaded):
        file.unlink(missing_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            code = tests(asked["tests"], output, loaded if asked.get("warm") else None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    ended: int | None = None
    try:
        while ended is None and time.monotonic() - started < asked["timeout"]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                ended = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.02)
    finally:  # also where this process is told to end
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
    if ended is None:
        os.waitpid(child, 0)
    if loaded.exists():
        for name in json.loads(loaded.read_text()):
            with contextlib.suppress(BaseException):
                importlib.import_module(name)
    said = output.read_bytes()[-TAIL:].decode(errors="replace") if output.exists() else ""
    return {"code": ended, "seconds": time.monotonic() - started, "output": said}


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            answers.write(json.dumps(forked(json.loads(line), Path(folder))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
