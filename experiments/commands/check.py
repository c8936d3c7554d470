"""Check a policy. Arguments and help only; the work is imported when a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from fastercache.experiments.commands.options import Call, Fields, Json, finish


def check_policy(
    policy: Annotated[
        str, typer.Argument(metavar="NAME|FILE.py:Class", help="A registered policy, or one in a file of your own.")
    ],
    fields: Fields = None,
    pipes: Annotated[
        list[str] | None,
        typer.Option(
            "--pipe",
            metavar="NAME",
            help="Check on this: a family of the zoo, a reference model, a folder or hub id; may be repeated. "
            "[latte-digits, cogvideox, wan]",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=4, help="Denoising steps; the zoo has its own.")] = 8,
    prompt: Annotated[str, typer.Option("--prompt", help="What a pipeline of yours generates.")] = "a red ball",
    call: Call = None,
    as_json: Json = False,
) -> None:
    """Check that a policy keeps the laws of the runtime, on the trained model and on two random families.

    Exits with 1 if a law is broken, with 2 if the policy cannot be used. Examples:

    `fastercache check-policy teacache --set threshold=0.3`

    `fastercache check-policy my_policy.py:MyPolicy --pipe wan --pipe mochi`
    """
    from fastercache.experiments.jobs import checking

    found = checking.check(
        policy,
        fields or (),
        pipes or checking.PIPES,
        steps=steps,
        prompt=prompt,
        show=not as_json,
        arguments=call or (),
    )
    finish(found, as_json)
    if not found["passed"]:
        raise typer.Exit(1)
