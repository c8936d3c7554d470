"""What a command says when something goes wrong: one line for what a user can cause, a report for anything else."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

HIS, OURS = 2, 1
"""Exit codes: a mistake that the user can mend, and one that only we can."""

_SCARCE = "out of memory: try fewer frames, a smaller size, a smaller --dtype, or another --device"


def told(error: Exception) -> tuple[str, int]:
    """The line for an error that ended a command, and the exit code.

    What a user can cause exits with 2: every FasterCacheError, files and folders that cannot be read or written,
    memory that runs out, and whatever a pipeline raises about the arguments it was called with. Anything else is a
    fault of this toolkit: its traceback is kept in a file, and the line says where to report it.
    """
    from fastercache.policies.documents import refused_by_disk
    from fastercache.policies.errors import FasterCacheError

    if isinstance(error, FasterCacheError):
        return in_shell_words(str(error)), HIS
    if disk := refused_by_disk(error):
        return disk, HIS
    if isinstance(error, OSError) and (error.strerror or error.filename):
        where = f"{os.fspath(error.filename)}: " if isinstance(error.filename, (str, os.PathLike)) else ""
        return f"{where}{error.strerror or error}{_ADVICE.get(type(error), '')}", HIS
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _SCARCE, HIS
    if type(error).__name__ == "SafetensorError":
        return f"a file could not be read or written: {error}", HIS
    if (pipe := refused_by(error)) is not None:
        from fastercache.tuner.setting import lacking

        said = lacking(pipe, error)
        name, reason = type(pipe).__name__, str(error) or type(error).__name__
        return said or f"{name} cannot be called so: {reason}; change --call, --steps or PROMPT", HIS
    kept = keep(error)
    return (
        f"this is a fault of fastercache, not yours: {type(error).__name__}: {error}; please report it in the "
        f"project's issue tracker with the file {kept}"
    ), OURS


_ADVICE: dict[type[OSError], str] = {
    FileExistsError: ": a file stands where a folder is to be made; give another path",
    NotADirectoryError: ": a part of this path is a file; give another path",
    IsADirectoryError: ": this is a folder; give a file",
    PermissionError: "; give a path that you may use",
    FileNotFoundError: "; check the path",
}

_SHELL = {
    f"allow={{'{part}'}}": f"--allow {part}"
    for part in ("model", "pipeline", "scheduler", "steps", "guidance_scale", "guidance")
}


def in_shell_words(message: str) -> str:
    """The runtime's hints name arguments of `attach`; on the command line they are options."""
    for python, shell in _SHELL.items():
        message = message.replace(python, shell).replace(python.replace("'", '"'), shell)
    return message


def refused_by(error: Exception) -> Any:
    """The pipeline whose call raised an error, if no code of ours had a part in raising it; None otherwise."""
    pipeline, frame = None, None
    for frame in _frames(error):
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "__call__" and "DiffusionPipeline" in {c.__name__ for c in type(owner).__mro__}:
            pipeline = owner
    ours = frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "fastercache"
    return None if ours else pipeline


def _frames(error: Exception) -> Iterator[FrameType]:
    """The frames an error went through, the one that raised it last."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def keep(error: Exception) -> Path:
    """Write an error's traceback to a new file in the folder for temporary files."""
    number, name = tempfile.mkstemp(prefix="fastercache-", suffix=".log")
    with os.fdopen(number, "w", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))
    return Path(name)
