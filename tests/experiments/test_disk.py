"""A disk that is full or read-only is one line, wherever in the work, or in another package, it is met."""

from __future__ import annotations

import errno
import os

import pytest
import typer

from fastercache.experiments import cli


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_or_read_only_disk_is_one_line(capsys: pytest.CaptureFixture[str], number: int, wrapped: bool) -> None:
    def command() -> None:
        try:
            raise OSError(number, os.strerror(number), "/some/where")
        except OSError as error:
            if not wrapped:
                raise
            raise RuntimeError("a package that hides it") from error

    with pytest.raises(typer.Exit) as ended:
        cli.guarded(command)()
    said = capsys.readouterr().err
    assert ended.value.exit_code == 2 and said.count("\n") == 1
    assert "/some/where" in said and os.strerror(number) in said and "run it again" in said


def test_any_other_error_is_no_users_error(capsys: pytest.CaptureFixture[str]) -> None:

    def command() -> None:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(typer.Exit) as ended:
        cli.guarded(command)()
    said = capsys.readouterr().err
    assert ended.value.exit_code == 1 and "report" in said and said.count("\n") == 1
