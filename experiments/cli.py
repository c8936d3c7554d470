"""The command line: what every command shares. The commands themselves are in `experiments/commands`.

Nothing heavy is imported before a command runs. Errors that a user can cause
are one line on standard error and exit code 2, faults of the toolkit one line, a log file and exit code 1
(`failures`); an interruption says how to go on and exits with 130.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from fastercache.experiments import console, failures
from fastercache.experiments.commands import against, check, cost, find, look, make, planning, see, ship

WRONG_WORDS: type[Exception] = typer.BadParameter.__mro__[1]
"""What is raised for a command line that no command takes: options that do not exist, values of another type."""


class Commands(TyperGroup):
    """The commands as a group that tells of a wrong command line as of any other mistake: in one line."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command line, and exit unless `standalone_mode` is False."""
        if not standalone_mode:
            return super().main(*args, **extra, standalone_mode=False)  # type: ignore[misc]
        try:
            code = super().main(*args, **extra, standalone_mode=False)  # type: ignore[misc]
        except typer.Abort:
            code = 1
        except WRONG_WORDS as error:
            code = failures.HIS
            where: Any = getattr(error, "ctx", None)
            if type(error).__name__ == "NoArgsIsHelpError":  # the bare name: help is the answer
                typer.echo(where.get_help(), err=True)
            else:
                path = "fastercache" if where is None else where.command_path
                console.fail(f"{error.format_message().rstrip('.')}; see {path} --help")  # type: ignore[attr-defined]
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="fastercache",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "See where a diffusion model repeats itself, search the cache schedule that exploits it, ship it as a file.\n\n"
        "PIPE is a short name (`latte-digits` and `wan-digits`, trained, ship with the project), a folder written by "
        "`save_pretrained`, or a hub id such as `maxin-cn/Latte-1`.\n\n"
        "Every command takes `--json`: one JSON object on standard output, everything else on standard error."
    ),
    epilog=(
        "Try: `fastercache generate latte-digits 'a red seven moving left' --compare`\n\n"
        "then: `fastercache plan latte-digits --budget 'psnr>=45' --out tuned.json`\n\n"
        "then: `fastercache generate latte-digits --config tuned.json --compare`"
    ),
)

F = TypeVar("F", bound=Callable[..., None])
RESUMABLE = ("plan", "tune", "demo", "bench", "certify")
RESUME = "interrupted; what was finished is kept: run the same command again and it goes on from there"


def guarded(command: F) -> F:
    """Wrap a command: an error becomes one line and an exit code (`failures`), an interruption a hint and 130."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        console.quiet()
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            console.say(RESUME if command.__name__ in RESUMABLE else "interrupted")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except Exception as error:
            line, code = failures.told(error)
            console.fail(line)
            raise typer.Exit(code) from None

    return wrapper  # type: ignore[return-value]


def version(asked: bool) -> None:
    """Print the installed version and end."""
    if asked:
        typer.echo(f"fastercache {metadata.version('fastercache')}")
        raise typer.Exit


@app.callback()
def options(
    asked: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What stands before a command."""


COMMANDS: tuple[Callable[..., None], ...] = (
    look.sites,
    look.policies,
    check.check_policy,
    make.generate,
    find.analyze,
    planning.plan,
    see.report,
    see.compare,
    see.attribute,
    find.tune,
    ship.certify,
    ship.export,
    make.demo,
    cost.overhead,
    against.bench,
    against.bench_size,
)
for command in COMMANDS:
    app.command()(guarded(command))


def main() -> None:
    """Entry point of the `fastercache` command."""
    app()


if __name__ == "__main__":
    main()
