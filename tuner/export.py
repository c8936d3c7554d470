"""From a study to the file that ships: the best policy with what it was made for and what was measured."""

from __future__ import annotations

import statistics

from fastercache.policies.errors import ConfigUnreadable
from fastercache.prompts import prompt_hash
from fastercache.tuned import Certificate, Measured, Results, TunedConfig, guidance_scale_of
from fastercache.tuner.record import Record
from fastercache.tuner.study import Study


def export(
    study: Study,
    record: Record | None = None,
    *,
    held_out: Measured | None = None,
    certificate: Certificate | None = None,
) -> TunedConfig:
    """The tuned config of a study's best trial, or of another record.

    Args:
        held_out: what `study.verify()` measured; without it the file says that nothing was.

    Raises:
        BudgetNotMet: if no trial met the budget.
    """
    record = record or study.best()
    run = study.cost_model.run
    setting = study.evaluator.setting
    scale = setting.call.get("guidance_scale", guidance_scale_of(setting.pipe, setting.call))
    return TunedConfig.describe(
        study.evaluator.pipe,
        record.policy,
        steps=run.count,
        guidance_scale=scale if len(run.branches) > 1 else None,
        guidance=study.guidance if len(run.branches) > 1 else "none",
        latent=study.cost_model.latent,
        budget=str(study.budget),
        measured=Results(search=searched(study, record), held_out=held_out),
        certificate=certificate,
        seen=tuple(sorted({prompt_hash(case.prompt) for case in (*study.search, *study.held_out)})),
    )


def searched(study: Study, record: Record) -> Measured:
    """What a trial measured on the search prompts. Its seconds are one trial's, so no wall-clock speedup is claimed."""
    if record.ratio is None or record.seconds is None or record.cached_bytes is None:
        raise ConfigUnreadable(f"trial {record.number} was not measured ({record.outcome}): export a measured one")
    means = {name: statistics.fmean(values) for name, values in record.values.items()}
    return Measured(
        prompts=len(study.search),
        quality=means,
        speedup_flops=1.0 / record.ratio,
        seconds=record.seconds,
        cached_bytes=record.cached_bytes,
        hardware=study.evaluator.setting.hardware,
    )
