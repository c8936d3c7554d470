"""Files are written whole or not at all, and what cannot be read is refused in one short printable line."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from fastercache.policies.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_TEXT,
    Missing,
    check_writable,
    deeper_than,
    put_aside,
    read_bytes,
    read_json,
    read_model,
    read_text,
    refused_by_disk,
    replacing,
    write_atomic,
    write_json,
)
from fastercache.policies.errors import ConfigUnreadable, FasterCacheError, InvalidPolicy, NotFinite, shown, suggest
from fastercache.policies.methods.fora import FORA
from fastercache.policies.registry import load_policy

HOSTILE = {
    "whole number of 5,000 digits": '{"a": ' + "1" * 5000 + "}",
    "nested lists": "[" * 100_000 + "]" * 100_000,
    "nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a hundred levels": "[" * 100 + "]" * 100,
    "NaN": '{"a": NaN}',
    "infinity by overflow": '{"a": 1e999}',
    "half a surrogate": '{"a": "\\ud800"}',
    "no UTF-8": '{"a": "\udcff"}',
    "control character": '{"a": "\x1b[31m"}',
    "cut off": '{"a": [1, 2',
    "empty": "",
}


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: str = "thing"
    version: int = 1
    names: tuple[str, ...] = ()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_json_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigUnreadable) as caught:
        read_json(path, "thing")
    assert len(str(caught.value)) < 400 + len(str(path)) and str(caught.value).isprintable()


def test_a_file_that_is_too_large_or_no_file_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ConfigUnreadable, match="at most"):
        read_json(path, "thing")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(ConfigUnreadable, match="no regular file"):
        read_json(tmp_path / "pipe", "thing")
    with pytest.raises(ConfigUnreadable, match="no regular file"):
        read_json(tmp_path, "thing")
    with pytest.raises(Missing):
        read_json(tmp_path / "none.json", "thing")
    with pytest.raises(ConfigUnreadable):
        read_json("a\0b", "thing")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a JSON object"),
        ({"format": "other"}, "its format is 'other'"),
        ({"format": "x" * 10**6}, "its format is 'x"),
        ({"names": []}, "no key 'format'"),
        ({"format": "thing", "version": 2}, "has version 2"),
        ({"format": "thing", "version": True}, "has version True"),
        ({"format": "thing", "version": 1, "names": [1]}, "names.0: input should be a valid string"),
        ({"format": "thing", "version": 1, "\x07" * 10**6: 1}, "has no field"),
    ],
)
def test_a_foreign_document_is_refused(tmp_path: Path, data: object, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigUnreadable, match=message) as caught:
        read_model(path, Thing, "thing")
    assert len(str(caught.value)) < 2100 and str(caught.value).isprintable()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    thing = Thing(names=("a", "ä"))
    path = write_json(tmp_path / "new" / "a.json", thing.model_dump(mode="json"), "thing")
    assert read_model(path, Thing, "thing") == thing
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfone")
    assert read_text(tmp_path / "bom.txt", "page") == "one"
    with pytest.raises(NotFinite):
        write_json(path, {"a": float("nan")}, "thing")
    assert read_model(path, Thing, "thing") == thing


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a", "old", "thing")
    with (
        pytest.raises(ConfigUnreadable, match=f"{os.strerror(errno.ENOSPC)}; make room"),
        replacing(path, "thing") as new,
    ):
        new.write_text("ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(KeyboardInterrupt), replacing(path, "thing") as new:
        new.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigUnreadable):
        write_atomic(tmp_path / "file" / "b", "text", "thing")


def test_a_link_is_written_through_and_permissions_are_kept(tmp_path: Path) -> None:
    """As a plain `open(path, "w")` does; by Path.write_text beside it."""
    (tmp_path / "elsewhere").mkdir()
    for name, writes in (
        ("plain", lambda path: path.write_text("new")),
        ("ours", lambda p: write_atomic(p, "new", "thing")),
    ):
        real = tmp_path / "elsewhere" / f"{name}.json"
        real.write_text("old")
        real.chmod(0o640)
        (tmp_path / name).symlink_to(real)
        (tmp_path / f"{name}-dangling").symlink_to(tmp_path / "elsewhere" / f"{name}-made.json")
        before = os.umask(0o027)
        try:
            for link in (tmp_path / name, tmp_path / f"{name}-dangling", tmp_path / f"{name}-fresh"):
                writes(link)
        finally:
            os.umask(before)
        assert (tmp_path / name).is_symlink() and (tmp_path / f"{name}-dangling").is_symlink()
        assert real.read_text() == (tmp_path / "elsewhere" / f"{name}-made.json").read_text() == "new"
        assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE((tmp_path / f"{name}-fresh").stat().st_mode) == 0o640
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == sorted(
        f"{name}{end}.json" for name in ("plain", "ours") for end in ("", "-made")
    )


def test_permissions_do_not_depend_on_what_writes_the_file(tmp_path: Path) -> None:
    """A library may write beside the temporary file and rename, for its owner alone."""
    path = tmp_path / "weights"
    path.write_text("old")
    path.chmod(0o644)
    with replacing(path, "thing") as new:
        other = tmp_path / "other"
        other.write_text("new")
        other.chmod(0o600)
        other.replace(new)
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_process_that_dies_in_mid_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.json", "old", "thing")

    def die() -> None:
        with replacing(path, "thing") as new:
            new.write_text("ne")
            os._exit(9)

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join()
    assert child.exitcode == 9 and path.read_text() == "old"


def test_many_writers_of_one_file(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def write(text: str) -> None:
        try:
            for _ in range(50):
                write_atomic(tmp_path / "a", text * 1000, "thing")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(c,)) for c in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = (tmp_path / "a").read_text()
    assert not failed and text == text[0] * 1000 and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_read_is_put_aside_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for n in (1, 2):
        path.write_text(f"half {n}")
        assert put_aside(path).read_text() == f"half {n}" and not path.exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_messages_are_short_and_printable() -> None:
    error = FasterCacheError("a\x1b[31m\nb" + "x" * 10**7)
    assert str(error).startswith("a\\x1b[31m b") and str(error).isprintable() and len(str(error)) < 2100
    assert len(shown("x" * 10**7)) < 100 and shown(10**6000) == "a value of type int"
    assert suggest("x" * 10**7, ["a", "b"]) == ""


@pytest.mark.parametrize(
    "value", [True, "3", pytest.param(10**6000, id="huge"), "x" * 10**6, None, [3], 2.5, float("nan")]
)
def test_a_number_of_the_wrong_type_is_refused(value: object) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        FORA(interval=value)
    assert len(str(caught.value)) < 400 and "interval" in str(caught.value)
    assert FORA(interval=3).interval == 3


def test_numbers_inside_a_field_are_checked_too() -> None:
    with pytest.raises(InvalidPolicy, match=r"teacache.coefficients.1: input should be a number, found True"):
        load_policy({"policy": "teacache", "coefficients": [1.0, True]})
    with pytest.raises(InvalidPolicy, match=r"magcache.ratios.cond.0: input should be a number, found '1'"):
        load_policy({"policy": "magcache", "ratios": {"cond": ["1"]}})


@pytest.mark.parametrize("count", [70, 200, 900])
def test_policies_nested_too_deep_are_refused(count: int) -> None:
    data: dict[str, object] = {"policy": "fora"}
    for _ in range(count):
        data = {"policy": "warm_up", "steps": 1, "inner": data}
    with pytest.raises(InvalidPolicy, match="nested more than"):
        load_policy(data)


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_the_depth_of_a_file_has_a_bound(tmp_path: Path, levels: int, begin: str, end: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(begin * levels + "1" + end * levels)
    if levels == MAX_DEPTH:
        assert deeper_than(read_json(path, "thing"), levels - 1)
    else:
        with pytest.raises(ConfigUnreadable, match=f"nested more than {MAX_DEPTH} levels"):
            read_json(path, "thing")


def test_depth_counts_what_lies_inside_one_another() -> None:
    """Mappings, lists and tuples alike, the deepest of them; a text is no list of letters."""
    for value, depth in ((1, 0), ("abc", 0), ([1], 1), ([[], [1, ({"a": 1},)]], 4), ({"a": 1, "b": {"c": [2]}}, 3)):
        assert [deeper_than(value, limit) for limit in range(6)] == [limit < depth for limit in range(6)], value


@pytest.mark.parametrize("sign", ["", "-"])
def test_the_digits_of_a_whole_number_have_a_bound_whatever_its_sign(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f"[{sign}{'9' * MAX_DIGITS}]")
    assert read_json(path, "thing") == [int(f"{sign}{'9' * MAX_DIGITS}")]
    path.write_text(f"[{sign}{'9' * (MAX_DIGITS + 1)}]")
    with pytest.raises(ConfigUnreadable, match=f"{MAX_DIGITS + 1} digits, at most {MAX_DIGITS}"):
        read_json(path, "thing")


@pytest.mark.parametrize("wrap", ["{}", "[[{}]]", '{{"a": {}}}', "{{{}: 1}}"], ids=["alone", "listed", "value", "key"])
def test_texts_are_checked_wherever_they_stand(tmp_path: Path, wrap: str) -> None:
    path = tmp_path / "a.json"
    for text, fault in (
        ("x" * MAX_TEXT, None),
        ("x" * (MAX_TEXT + 1), "a text of 1,048,577 characters"),
        ("é", None),
        ("\\ud800", "an unpaired surrogate"),
    ):
        path.write_text(wrap.format(f'"{text}"'))
        if fault is None:
            read_json(path, "thing")
        else:
            with pytest.raises(ConfigUnreadable, match=fault):
                read_json(path, "thing")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"format": "thing", "version": 1, "names": ["b"]}')
    assert read_json(tmp_path / "a.json", "thing")["names"] == ["b"]
    assert read_model(tmp_path / "a.json", Thing, "thing") == Thing(names=("b",))
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(ConfigUnreadable, match=r"is not UTF-8 text \(byte 2\)"):
        read_text(tmp_path / "a.txt", "page")


def test_folders_are_made_on_the_way_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "a.json"
    assert write_json(path, [1], "thing") == path and path.read_bytes() == b"[\n  1\n]\n"


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a", b"12345", "thing")
    assert read_bytes(path, "thing", limit=5) == b"12345"
    with pytest.raises(ConfigUnreadable, match="it has 5 bytes, at most 4 are read"):
        read_bytes(path, "thing", limit=4)


@pytest.mark.parametrize(
    "data",
    [{"format": "thing", "version": 0}, {"format": "thing"}, {"format": "thing", "version": "1"}, {"version": 1}],
)
def test_a_document_without_its_header_is_refused(tmp_path: Path, data: dict[str, object]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigUnreadable, match=r"has version|has no key 'format'"):
        read_model(path, Thing, "thing")


def test_a_model_without_a_header_needs_none(tmp_path: Path) -> None:
    class Plain(BaseModel):
        model_config = ConfigDict(strict=True)
        names: tuple[str, ...]

    path = tmp_path / "a.json"
    path.write_text('{"names": ["a", "b"]}')
    assert read_model(path, Plain, "thing") == Plain(names=("a", "b"))


def test_infinity_is_not_written_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"a": 1}, "thing", indent=None)
    assert path.read_bytes() == b'{"a": 1}\n'
    for value in (float("inf"), -float("inf"), [{"b": float("nan")}]):
        with pytest.raises(NotFinite, match="the thing holds NaN or infinity"):
            write_json(path, {"a": value}, "thing")
    assert path.read_bytes() == b'{"a": 1}\n' and len(list(tmp_path.iterdir())) == 1


def test_what_is_put_aside_takes_the_first_name_that_is_free(tmp_path: Path) -> None:
    (tmp_path / "a.json.unreadable-2").write_text("old 2")
    found = []
    for n in (1, 2, 3):
        path = write_atomic(tmp_path / "a.json", f"new {n}", "thing")
        found.append(put_aside(path).name)
    assert found == [f"a.json.unreadable-{n}" for n in (1, 3, 4)]
    assert (tmp_path / "a.json.unreadable-2").read_text() == "old 2"
    with pytest.raises(ConfigUnreadable, match=r"cannot put .*a\.json aside"):
        put_aside(tmp_path / "a.json")


def test_the_disk_is_blamed_for_what_it_refused_alone() -> None:
    """Also where another package has wrapped its error, or met it while it dealt with one of its own."""
    full = OSError(errno.ENOSPC, "No space left on device", "/a/b")
    outer = RuntimeError("cannot save")
    outer.__cause__ = full
    beside = ValueError("twice")
    beside.__context__ = outer
    for error in (full, outer, beside):
        assert refused_by_disk(error) is not None and "/a/b: No space left" in str(refused_by_disk(error))
    for number in (errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG):
        assert str(refused_by_disk(OSError(number, "no"))).startswith("the file system refuses: no;")
    for error in (OSError(errno.ENOENT, "not there"), OSError("odd"), RuntimeError("cannot save")):
        assert refused_by_disk(error) is None


def test_asking_whether_a_file_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in ("there/a", "new/folder/a", "file"):
        check_writable(tmp_path / path, "thing")
    for path, message in (("there", "it is a folder"), ("file/a", "choose another place"), ("a\0b", "null byte")):
        with pytest.raises(ConfigUnreadable, match=message):
            check_writable(tmp_path / path, "thing")
    assert (
        sorted(p.name for p in tmp_path.rglob("*")) == ["file", "there"] and (tmp_path / "file").read_text() == "kept"
    )


def test_an_error_in_what_writes_a_file_is_its_own(tmp_path: Path) -> None:
    """Only what the file system refuses is told as a file that cannot be written."""
    path = write_atomic(tmp_path / "a", "old", "thing")
    with pytest.raises(ValueError, match="mine"), replacing(path, "thing"):
        raise ValueError("mine")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]
