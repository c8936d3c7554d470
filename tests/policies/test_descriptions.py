"""Every field of every policy and predictor says what it is; the text serves `policies NAME`, `--help` and the docs."""

from __future__ import annotations

import pytest

from fastercache.policies.base import Config
from fastercache.policies.registry import known_policies, predictors
from fastercache.policies.schedule import Row


@pytest.mark.parametrize(
    "config", [*known_policies().values(), *predictors().values(), Row], ids=lambda config: config.name
)
def test_every_field_has_a_meaning(config: type[Config]) -> None:
    silent = [name for name, info in config.model_fields.items() if not info.description]
    assert not silent, f"{config.name}: no description for {', '.join(silent)}"


def test_a_subclass_that_changes_a_default_keeps_the_meaning() -> None:
    interval, fora = known_policies()["static_interval"], known_policies()["fora"]
    assert fora.model_fields["sites"].default == "all" != interval.model_fields["sites"].default
    assert fora.model_fields["sites"].description == interval.model_fields["sites"].description
