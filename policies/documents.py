"""Every file this toolkit reads or writes goes through here: read with care, written whole or not at all.

JSON of unknown origin can be cut off, nested a hundred thousand levels deep, or hold numbers of thousands of digits.
`read_json` refuses all of these in one line and builds nothing but plain values. `write_atomic` writes under a name of
its own and renames, so neither a crash nor a second process leaves half a file under the final name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fastercache.policies.base import explain
from fastercache.policies.errors import ConfigUnreadable, FasterCacheError, NotFinite, shown

MAX_BYTES = 32 * 2**20
"""Size of the largest JSON file that is read."""
MAX_DEPTH = 64
"""How deep objects and lists may be nested."""
MAX_TEXT = 2**20
"""Characters of the longest text in it."""
MAX_DIGITS = 20
"""Digits of the longest whole number that is read: enough for 64 bits."""

M = TypeVar("M", bound=BaseModel)


class Missing(ConfigUnreadable):
    """The file does not exist.

    Symptom: `there is no tuned config at tuned.json`.
    Cause: The path is wrong, or the command that writes the file has not run.
    Fix: Correct the path, or run that command first.
    """


def read_bytes(path: str | Path, what: str, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Args:
        what: the kind of file, for the message: `tuned config`.

    Raises:
        Missing: if there is no such file.
        ConfigUnreadable: if it is no regular file, is too large, or cannot be read.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise Missing(f"there is no {what} at {path}")
        if not path.is_file():
            raise ConfigUnreadable(f"cannot read the {what} {path}: it is no regular file")
        if (size := path.stat().st_size) > limit:
            raise ConfigUnreadable(f"{path} is no {what}: it has {size:,} bytes, at most {limit:,} are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise Missing(f"there is no {what} at {path}") from None
    except OSError as error:
        raise ConfigUnreadable(f"cannot read the {what} {path}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigUnreadable(f"cannot read the {what} {path}: {error}") from None


def read_text(path: str | Path, what: str) -> str:
    """A UTF-8 text file; a byte order mark is skipped. Raises Missing, ConfigUnreadable."""
    try:
        return read_bytes(path, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigUnreadable(f"the {what} {path} is not UTF-8 text (byte {error.start})") from None


def read_json(path: str | Path, what: str) -> Any:
    """A JSON file as plain values: finite numbers, bounded depth, text that can be encoded. A byte order mark is
    skipped.

    Raises:
        Missing, ConfigUnreadable: as `read_bytes`, or if it is no such JSON; one line of bounded length.
    """
    return parse_json(read_bytes(path, what), what, path)


def parse_json(data: bytes, what: str, path: str | Path) -> Any:
    """As `read_json`, from bytes; `path` is for the message."""
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_int=_whole, parse_float=_number, parse_constant=_number)
        _check(value)
    except RecursionError:
        raise ConfigUnreadable(f"{path} is no {what}: it is nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise ConfigUnreadable(f"{path} is no JSON, or was cut off ({error}): make the {what} again") from None
    except ValueError as error:  # also UnicodeDecodeError
        raise ConfigUnreadable(f"{path} is no {what}: {error}") from None
    return value


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"a whole number has {len(text.lstrip('-')):,} digits, at most {MAX_DIGITS} are read")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value


def deeper_than(value: Any, limit: int) -> bool:
    """Whether mappings, lists and tuples are nested in one another more than `limit` levels deep."""
    layer = [value]
    for _ in range(limit + 1):
        layer = [
            inner
            for item in layer
            if isinstance(item, (Mapping, list, tuple))
            for inner in (item.values() if isinstance(item, Mapping) else item)
        ]
        if not layer:
            return False
    return True


def _check(value: Any) -> None:
    """Raise ValueError for depth beyond `MAX_DEPTH`, for text that is too long or has unpaired surrogates."""
    if deeper_than(value, MAX_DEPTH):
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += item.keys()
            left += item.values()
        elif isinstance(item, list):
            left += item
        elif isinstance(item, str):
            if len(item) > MAX_TEXT:
                raise ValueError(f"it holds a text of {len(item):,} characters, at most {MAX_TEXT:,} are read")
            if not item.isascii():
                _encodable(item)


def _encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds an unpaired surrogate, which is no text") from None


def read_model(path: str | Path, cls: type[M], what: str) -> M:
    """A JSON file as a pydantic model. Where the model has the fields `format` and `version`, they are checked first.

    Raises:
        Missing, ConfigUnreadable: in one line: missing, cut off, foreign, another version, unknown or ill-typed keys.
    """
    data = read_json(path, what)
    if not isinstance(data, dict):
        raise ConfigUnreadable(f"{path} is no {what}: expected a JSON object, found {type(data).__name__}")
    expected, version = (cls.model_fields[name].default if name in cls.model_fields else None for name in HEADER)
    if expected is not None and data.get("format") != expected:
        found = f"its format is {shown(data['format'])}" if "format" in data else "it has no key 'format'"
        raise ConfigUnreadable(f"{path} is no {what}: {found}, expected {expected!r}")
    if version is not None and (type(data.get("version")) is not int or data["version"] != version):
        raise ConfigUnreadable(
            f"{path} has version {shown(data.get('version'))} of the {what}, this installation reads {version}: "
            f"upgrade it, or make the {what} again"
        )
    try:
        # As JSON, not as Python values: a strict model then takes lists for tuples, and converts nothing else.
        return cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ConfigUnreadable(f"{path} is damaged: {explain(cls, error)}") from None
    except FasterCacheError as error:
        raise ConfigUnreadable(f"{path}: {error}") from None
    except (RecursionError, OverflowError) as error:
        raise ConfigUnreadable(f"{path} is damaged: {type(error).__name__}") from None


HEADER = ("format", "version")


def dumped(data: Any, what: str, indent: int | None = 2) -> str:
    """Plain values as JSON text. Raises NotFinite for NaN and infinity, which JSON cannot hold."""
    try:
        return json.dumps(data, indent=indent, allow_nan=False) + "\n"
    except ValueError:
        raise NotFinite(f"the {what} holds NaN or infinity, so it is not written: its run went wrong") from None


def write_json(path: str | Path, data: Any, what: str, indent: int | None = 2) -> Path:
    """Write plain values as JSON, whole or not at all. Raises ConfigUnreadable, NotFinite."""
    return write_atomic(path, dumped(data, what, indent), what)


def write_atomic(path: str | Path, data: str | bytes, what: str) -> Path:
    """Write a file whole or not at all; its folder is made where it is missing.

    Raises:
        ConfigUnreadable: if it cannot be written: the disk is full, or the place is read-only.
    """
    with replacing(path, what) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | Path, what: str) -> Iterator[Path]:
    """A temporary file beside `path`, with its suffix, that takes its place when the block ends without an error.

    As with `open(path, "w")`, a link is written through, a file that was there keeps its permissions, and a new one
    gets those of the umask.

    Raises:
        ConfigUnreadable: for whatever the file system refuses.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        place = Path(os.path.realpath(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.stem[:40]}-{secrets.token_hex(8)}{place.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE((place if place.exists() else temporary).stat().st_mode)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # what writes the file may have made it anew
        os.replace(temporary, place)
    except OSError as error:
        raise ConfigUnreadable(
            f"cannot write the {what} {path}: {error.strerror or error}; make room, or choose another place"
        ) from None
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        raise ConfigUnreadable(f"cannot write the {what} {path}: {error}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def check_writable(path: str | Path, what: str) -> None:
    """Whether a file could be written, asked before the work whose outcome it is to hold. Nothing is left there.

    Raises:
        ConfigUnreadable: as `write_atomic` would.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigUnreadable(f"cannot write the {what} {path}: it is a folder; name a file")
    made: Path | None = None
    try:
        folder = Path(os.path.realpath(path)).parent
        made = next((parent for parent in reversed([folder, *folder.parents]) if not parent.exists()), None)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.stem[:40]}-"):
            pass
    except (OSError, ValueError) as error:
        raise ConfigUnreadable(
            f"cannot write the {what} {path}: {getattr(error, 'strerror', None) or error}; choose another place"
        ) from None
    finally:
        if made is not None:
            with contextlib.suppress(OSError):  # folders that were made for the question alone
                for one in (folder, *folder.parents):
                    one.rmdir()
                    if one == made:
                        break


REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def refused_by_disk(error: BaseException) -> str | None:
    """What to say of an error that a full or read-only disk caused somewhere in another package; None for others."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in REFUSALS:
            where = f" {cause.filename}" if cause.filename else ""
            return f"the file system refuses{where}: {cause.strerror}; make room or change the place, then run it again"
        cause = cause.__cause__ or cause.__context__
    return None


def put_aside(path: str | Path) -> Path:
    """Rename a file that cannot be read to the first free `NAME.unreadable-N`, so that nothing in it is lost.

    Raises:
        ConfigUnreadable: if it cannot be renamed.
    """
    path = Path(path)
    for n in range(1, 1000):
        aside = path.with_name(f"{path.name}.unreadable-{n}")
        try:
            os.link(path, aside)  # unlike a rename, fails where the name is taken
            path.unlink()
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigUnreadable(f"cannot put {path} aside: {error.strerror or error}; move it away") from None
        return aside
    raise ConfigUnreadable(f"cannot put {path} aside: a thousand files were already; move them away")
