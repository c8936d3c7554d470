"""Turns what was typed into values: policies, `key=value` pairs and prompt files. Light enough for `--help`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastercache.picking import Pick
    from fastercache.policies.base import Policy
    from fastercache.tuned import TunedConfig


def assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """`["interval=3", "weight=ramp"]` to `{"interval": 3, "weight": "ramp"}`.

    A value is read as JSON (numbers, true, null, lists, objects) and taken as text where it is none.

    Raises:
        InvalidPolicy: for a pair without `=` or a key given twice.
    """
    from fastercache.policies.errors import InvalidPolicy

    result: dict[str, Any] = {}
    for pair in pairs:
        key, found, text = pair.partition("=")
        key = key.strip()
        if not found or not key:
            raise InvalidPolicy(f"expected field=value, found '{pair}'")
        if key in result:
            raise InvalidPolicy(f"the field '{key}' is set twice")
        try:
            result[key] = json.loads(text)
        except (ValueError, RecursionError):  # no JSON, or one that no sensible value looks like
            result[key] = text
    return result


def named(policy: str) -> str:
    """The registered name of what `--policy` was given: a name as it stands, or a file of the user's own, which is run.

    Raises:
        ConfigUnreadable, InvalidPolicy: if there is no such file, it cannot be run, or does not hold the one policy.
    """
    from fastercache.policies.files import names_file, policy_from_file

    return policy_from_file(policy).name if names_file(policy) else policy


def metric_names(given: Sequence[str]) -> tuple[str, ...]:
    """The registered names of what `--metric` was given: names as they stand, or files `FILE.py:name`, which are run.

    Raises:
        ConfigUnreadable, InvalidMetric, MeasurementError: if there is no such file or metric.
    """
    from fastercache.analysis.metrics import metric_called, metric_from_file
    from fastercache.policies.files import names_file

    return tuple((metric_from_file(text) if names_file(text) else metric_called(text)).name for text in given)


def choose(
    policy: str | None,
    fields: Sequence[str],
    config: Path | None,
    preset: str | None = None,
    pick: Pick | None = None,
) -> Policy | TunedConfig:
    """The policy that `--policy`, `--preset`, `--set` and `--config` name; FasterCache as published if none is given.

    A file given as `--policy` beside `--config` only makes known the policy that the config was tuned for.

    Args:
        pick: which plan, where the config is a dial.

    Raises:
        UnknownPolicy, InvalidPolicy: for a name or field that does not exist, or a value out of range.
        ConfigUnreadable: for a tuned config that is missing, truncated or of another format.
    """
    from fastercache.policies import FasterCache, policy_class
    from fastercache.policies.errors import InvalidPolicy

    registered = None if policy is None else named(policy)
    if config is not None:
        if (policy is not None and policy == registered) or fields or preset:
            raise InvalidPolicy(
                "--config brings its own policy: leave out --preset, --set and --policy, unless it is the file of a "
                "policy of yours"
            )
        from fastercache.picking import Pick, opened

        return (pick or Pick()).of(opened(config))
    if pick:
        raise InvalidPolicy("--speedup, --budget and --quality pick a plan of a dial: give it with --config FILE")
    values = assignments(fields)
    if preset is not None:
        if registered not in (None, FasterCache.name):
            raise InvalidPolicy(f"presets belong to {FasterCache.name}, found --policy {policy}")
        return FasterCache(**(FasterCache.preset(preset).model_dump() | values))
    cls = policy_class(registered or FasterCache.name)
    if missing := cls.unmeasured(values):
        own = missing[0]
        raise InvalidPolicy(
            f"{cls.name} needs {own} measured on this very model: let `fastercache tune PIPE --policy {cls.name} --out "
            f"tuned.json` measure them and use --config tuned.json, or give known ones with --set {own}=..."
        )
    return cls(**values)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; blank lines and lines that start with `#` are passed over.

    Each line of a JSON Lines file (`.jsonl`) is an object of keyword arguments of the pipeline's call, see `Prompt`.

    Raises:
        ConfigUnreadable: if the file is missing, is no text, or holds no prompt.
        InvalidPrompt: for a line that is no such object.
    """
    from fastercache.policies.documents import read_text
    from fastercache.policies.errors import ConfigUnreadable

    if path.is_dir():
        raise ConfigUnreadable(f"{path} is a folder: give a text file with one prompt a line")
    text = read_text(path, "prompt file")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    prompts = [line for _, line in lines if not line.startswith("#")]
    if path.suffix.lower() == ".jsonl":
        prompts = [_from_json(line, f"{path}, line {number}", path.parent) for number, line in lines]
    if not prompts:
        raise ConfigUnreadable(f"the prompt file {path} holds no prompt: write one a line")
    return prompts


def _from_json(line: str, origin: str, folder: Path) -> str:
    """The prompt of one line of a JSON Lines file. Raises InvalidPrompt."""
    from fastercache.policies.documents import parse_json
    from fastercache.policies.errors import ConfigUnreadable
    from fastercache.prompts import InvalidPrompt, prompt_of

    try:
        found = parse_json(line.encode(), "prompt", origin)
    except ConfigUnreadable as error:
        raise InvalidPrompt(str(error)) from None
    if not isinstance(found, dict):
        raise InvalidPrompt(
            f'{origin}: expected an object like {{"prompt": "a red seven", "seed": 3}}, found {line:.40}'
        )
    return prompt_of(found, origin, folder)
