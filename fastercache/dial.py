"""A dial: one file with several plans for one model, each with what was measured of it, to pick from at each run.

>>> session = fc.attach(pipe, "dial.json", speedup=5)                                      # doctest: +SKIP
>>> session.use(quality="high")                                                            # doctest: +SKIP

Every plan in it was run and measured; what planning only predicts is not in such a file. So a pick by quality is a pick
by measured values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fastercache.bounds import CACHE, Bound, InvalidBudget, parts, read_bound, read_limit, wrong_direction
from fastercache.policies.documents import read_model, write_json
from fastercache.policies.errors import BudgetNotMet, ConfigMismatch, ConfigUnreadable, suggest
from fastercache.policies.notebook import Shown
from fastercache.policies.registry import AnyPolicy
from fastercache.tuned import (
    Certificate,
    Conditions,
    Guidance,
    Identity,
    Measured,
    Model,
    Results,
    TunedConfig,
    _Frozen,
    package_versions,
)

FORMAT: Literal["fastercache-dial"] = "fastercache-dial"
QUALITIES = {"high": "psnr>=45", "medium": "psnr>=38", "low": "psnr>=30"}
"""The words, each short for a budget. 45, 38 and 30 dB are root mean square differences to the uncached video of 1.4,
3.2 and 8.1 of 255 levels."""


class Choice(_Frozen):
    """One plan of a dial.

    Attributes:
        policy: the plan. budget: what it was planned within, where it was.
        measured: what came out, on the held-out or the search prompts at least.
        values: by metric, one value for each prompt: of the held-out prompts where there are any, else of the search
            prompts, on which the plan was made. Budgets are judged by them.
        certificate: on other prompts again.
    """

    policy: AnyPolicy
    budget: str | None = None
    measured: Results
    values: dict[str, tuple[float, ...]]
    certificate: Certificate | None = None

    @model_validator(mode="after")
    def _was_run(self) -> Choice:
        if self.measured.held_out is None and self.measured.search is None:
            raise ValueError("every plan of a dial must have been measured")
        count = self.expected.prompts
        for name, values in self.values.items():
            if len(values) != count:
                raise ValueError(f"{name} has {len(values)} values for {count} prompts")
        return self

    @property
    def expected(self) -> Measured:
        """The figures to go by: held-out ones where there are any."""
        found = self.measured.held_out or self.measured.search
        assert found is not None  # see `_was_run`
        return found

    @property
    def speedup(self) -> float:
        """Uncached over computed FLOPs of the denoiser, as measured."""
        return self.expected.speedup_flops

    @property
    def words(self) -> str:
        """`5.00x (psnr 55.8, ssim 0.9998)`."""
        quality = ", ".join(f"{name} {value:.4g}" for name, value in sorted(self.expected.quality.items()))
        return f"{self.speedup:.2f}x" + f" ({quality})" * bool(quality)


class Dial(Shown, _Frozen):
    """Several plans for one model, scheduler, number of steps and guidance; the slowest first.

    Attributes:
        signs: by metric, `>=` where a higher value is better, else `<=`.
        plans: by rising speedup. seen: hashes of the prompts that any of them was searched or measured on. tried: those
            that certifications have looked at, see `TunedConfig`.
        The rest is as in `TunedConfig`.
    """

    format: Literal["fastercache-dial"] = FORMAT
    version: Literal[1] = 1
    model: Model
    scheduler: Identity | None
    steps: int = Field(ge=1)
    guidance_scale: float | None
    guidance: Guidance
    signs: dict[str, Literal[">=", "<="]]
    plans: tuple[Choice, ...] = Field(min_length=1)
    seen: tuple[str, ...] = ()
    tried: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    conditions: Conditions | None = None
    packages: dict[str, str] = Field(default_factory=package_versions)

    @model_validator(mode="after")
    def _in_order(self) -> Dial:
        speedups = [plan.speedup for plan in self.plans]
        if any(after <= before for before, after in pairwise(speedups)):
            raise ValueError(f"the speedups of a dial's plans must rise, found {', '.join(f'{s:g}' for s in speedups)}")
        unsigned = sorted({name for plan in self.plans for name in plan.values} - set(self.signs))
        if unsigned:
            raise ValueError(f"signs says nothing of {unsigned[0]}")
        return self

    @classmethod
    def of(
        cls,
        configs: Sequence[TunedConfig],
        values: Sequence[Mapping[str, Sequence[float]]],
        signs: Mapping[str, Literal[">=", "<="]],
    ) -> Dial:
        """One file from tuned configs made for the same; of equally fast ones the first is kept.

        Args:
            values: for each config one value for each prompt, by metric; see `Choice`. signs: see above.

        Raises:
            ConfigMismatch: if they were made for different models, schedulers, numbers of steps or guidance.
        """
        first = configs[0]
        shared = ("model", "scheduler", "steps", "guidance_scale", "guidance", "conditions")
        for config in configs[1:]:
            for name in shared:
                if getattr(config, name) != getattr(first, name):
                    raise ConfigMismatch(f"a dial holds plans made for the same, these differ in {name.split('_')[0]}")
        plans: dict[float, Choice] = {}
        for config, own in zip(configs, values, strict=True):
            choice = Choice(
                policy=config.policy,
                budget=config.budget,
                measured=config.measured,
                values={name: tuple(map(float, found)) for name, found in own.items()},
                certificate=config.certificate,
            )
            plans.setdefault(choice.speedup, choice)
        return cls(
            **{name: getattr(first, name) for name in shared},
            signs=dict(signs),
            plans=tuple(plans[speedup] for speedup in sorted(plans)),
            seen=tuple(sorted({text for config in configs for text in config.seen})),
            tried={key: texts for config in configs for key, texts in config.tried.items()},
        )

    def _facts(self) -> dict[str, object]:
        return {"pipeline": self.model.pipeline, "steps": self.steps, "plans": [plan.words for plan in self.plans]}

    @property
    def words(self) -> str:
        """What there is to pick from."""
        return ", ".join(plan.words for plan in self.plans)

    # -- picking -----------------------------------------------------------------------------------------------------
    def pick(
        self, *, speedup: float | None = None, budget: str | None = None, quality: str | None = None
    ) -> TunedConfig:
        """One plan as a tuned config, by one of three questions.

        Args:
            speedup: the slowest plan that is at least so many times as fast, in FLOPs.
            budget: the fastest plan whose measured values keep it: `psnr>=45`, `p90:psnr>=40`, `cache<=2GiB`,
                several joined by commas.
            quality: `high`, `medium` or `low`, each short for a budget; see `QUALITIES`.

        Raises:
            ConfigUnreadable: if not exactly one of them is given, or the word is none of the three.
            InvalidBudget: if the budget cannot be read.
            BudgetNotMet: if no plan does it; the message says which there are.
        """
        asked = {"speedup": speedup, "budget": budget, "quality": quality}
        given = [name for name, value in asked.items() if value is not None]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "found none of them"
            raise ConfigUnreadable(
                f"a dial holds several plans, here {self.words}: pick one by speedup, budget or quality, {found}"
            )
        if speedup is not None:
            fast = [plan for plan in self.plans if plan.speedup >= speedup * (1.0 - 1e-9)]
            if not fast:
                raise BudgetNotMet(f"no plan of this dial is {speedup:g}x as fast: it holds {self.words}")
            return self.config(fast[0])
        if quality is not None and quality not in QUALITIES:
            raise ConfigUnreadable(
                f"no quality is called '{quality:.40}'{suggest(quality, QUALITIES)}: give {', '.join(QUALITIES)}"
            )
        text = budget if quality is None else QUALITIES[quality]
        assert text is not None
        tests = [self._test(part) for part in parts(text)]
        good = [plan for plan in self.plans if all(test(plan) for test in tests)]
        if not good:
            named = text if quality is None else f"quality '{quality}' ({text})"
            raise BudgetNotMet(f"no plan of this dial keeps {named} where it was measured: it holds {self.words}")
        return self.config(good[-1])

    def _test(self, part: str) -> Callable[[Choice], bool]:
        """Whether a plan keeps one term of a budget."""
        if (limit := read_limit(part)) is not None:
            if limit.what != CACHE:
                raise InvalidBudget(
                    f"a dial does not know how fast this machine is: leave {limit} out, ask for a speedup"
                )
            return lambda plan: plan.expected.cached_bytes <= limit.most
        bound: Bound = read_bound(part)
        if not any(bound.name in plan.values for plan in self.plans):
            raise InvalidBudget(
                f"{bound.name} was not measured of the plans of this dial{suggest(bound.name, self.signs)}: it knows "
                f"{', '.join(sorted(self.signs))}"
            )
        if bound.sign != self.signs[bound.name]:
            raise wrong_direction(bound, self.signs[bound.name] == ">=")
        return lambda plan: bound.name in plan.values and bound.holds(plan.values[bound.name])

    def config(self, choice: Choice) -> TunedConfig:
        """One of its plans as a tuned config."""
        return TunedConfig(
            model=self.model,
            scheduler=self.scheduler,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            guidance=self.guidance,
            policy=choice.policy,
            budget=choice.budget,
            measured=choice.measured,
            certificate=choice.certificate,
            seen=self.seen,
            tried=self.tried,
            conditions=self.conditions,
            packages=self.packages,
        )

    def certified(self, certificates: Mapping[int, Certificate]) -> Dial:
        """The same with certificates of some plans, by their place in `plans`."""
        return self.model_copy(
            update={
                "plans": tuple(
                    plan.model_copy(update={"certificate": certificates[i]}) if i in certificates else plan
                    for i, plan in enumerate(self.plans)
                )
            }
        )

    # -- files -------------------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> Path:
        """Write the file whole or not at all. Raises ConfigUnreadable if it cannot be written."""
        return write_json(path, self.model_dump(mode="json"), "dial")

    @classmethod
    def load(cls, path: str | Path) -> Dial:
        """Read a file that `save` wrote. Raises ConfigUnreadable."""
        return read_model(path, cls, "dial")
