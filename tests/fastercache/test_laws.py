"""Laws 1 to 9 on a random Latte, for policies of every site kind, static and dynamic."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import fastercache as fc
from fastercache.inventory import take_inventory
from fastercache.policies.signals import Signal
from fastercache.policies.vocabulary import Branch, Run, Site, Step
from fastercache.testing import LAWS, LawBroken, check_policy
from fastercache.testing.laws import Checker
from fastercache.zoo.specimen import Specimen


class Drift(fc.SitePolicy, fc.WatchingRule[list[Tensor]]):
    """A dynamic policy: reuse while the watched value moved less than `threshold` since the last computed step."""

    name: ClassVar[str] = "test_drift"
    sites: str = "attention"
    watched: Signal = Signal.INPUT
    threshold: float = 0.5

    @property
    def query(self) -> str:
        return self.sites

    @property
    def signal(self) -> Signal:
        return self.watched

    def begin(self, site: Site, branch: Branch, run: Run) -> list[Tensor]:
        return []

    def reuse(self, state: list[Tensor], step: Step, seen: Tensor | None) -> bool:
        assert seen is not None
        if state and state[0].shape == seen.shape:
            moved = float((seen - state[0]).abs().mean() / state[0].abs().mean())
            if moved < self.threshold and step.index % 3:
                return True
        state[:] = [seen.clone()]
        return False


POLICIES = {
    "module": fc.StaticInterval(interval=2),
    "module, extrapolated": fc.StaticInterval(sites="all", interval=3, stand_in=fc.Linear()),
    "block": fc.StaticInterval(sites="block[1:]", interval=3),
    "stack": fc.StaticInterval(sites="stack[1:-1]", interval=2),
    "stack across layouts": fc.StaticInterval(sites="stack[1:4]", interval=2),
    "whole stack": fc.StaticInterval(sites="stack", interval=3),
    "denoiser": fc.StaticInterval(sites="denoiser", interval=2),
    "branch": fc.CFGCache(interval=3, start=0.0),
    "branch and module": fc.FasterCache(start=0.2, cfg_start=0.2, cfg_interval=3),
    "nested": fc.StaticInterval(sites="branch|stack|block|all", interval=2),
    "stack beside module": fc.Compose(
        [fc.StaticInterval(sites="stack[1:3]", interval=2), fc.StaticInterval(sites="spatial[0:1]|ff", interval=3)]
    ),
    "published": fc.FasterCache.preset("latte"),
}
DYNAMIC = {
    "module": Drift(),
    "denoiser": Drift(sites="denoiser"),
    "stack": Drift(sites="stack[1:]"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_law_holds(name: str, latte: Specimen) -> None:
    report = check_policy(POLICIES[name], latte, steps=8).raise_if_broken()
    assert [v.law for v in report.verdicts if v.passed] == list(LAWS)
    assert name == "published" or report.reused > 0


BY_BRANCH = fc.Schedule(
    rows=(
        fc.Row(sites="stack[1:]", branch="cond", steps="CRCCRR"),
        fc.Row(sites="stack[1:]", branch="uncond", steps="CCRRCR"),
        fc.Row(sites="block[0:1]", branch="cond", steps="CCRCCR"),
        fc.Row(sites="block[0:1]", branch="uncond", steps="CRCCRC"),
    )
)


def test_branches_that_are_reused_at_different_steps_keep_to_themselves(latte: Specimen) -> None:
    """In one call a run of blocks is reused for one branch and computed for the other; law 2 would need other steps."""
    report = check_policy(BY_BRANCH, latte, laws=(1, 4, 5, 6, 7, 9)).raise_if_broken()
    assert report.reused > 0 and all(v.passed for v in report.verdicts)


@pytest.mark.parametrize("name", DYNAMIC)
def test_every_law_holds_for_dynamic_policies(name: str, latte: Specimen) -> None:
    unregistered = [law for law in LAWS if law != 8]  # a tuned config holds registered policies only
    report = check_policy(DYNAMIC[name], latte, laws=unregistered).raise_if_broken()
    assert report.reused > 0


def test_reuse_changes_the_output(latte: Specimen) -> None:
    bare = latte.generate()
    for name in ("module", "block", "stack", "denoiser", "branch"):
        with fc.attach(latte.pipe, POLICIES[name]):
            assert not torch.equal(latte.generate(), bare), name


class Leaky(fc.SitePolicy, fc.WatchingRule[None]):
    """Breaks law 7 on purpose: what it decides depends on how often it was asked, in all runs together."""

    name: ClassVar[str] = "test_leaky"
    asked: ClassVar[list[int]] = [0]

    @property
    def query(self) -> str:
        return "attention"

    @property
    def signal(self) -> Signal:
        return Signal.INPUT

    def reuse(self, state: None, step: Step, seen: Tensor | None) -> bool:
        self.asked[0] += 1
        return step.index > 0 and self.asked[0] % 7 < 3


def test_a_broken_policy_is_caught(latte: Specimen) -> None:
    report = check_policy(Leaky(), latte, laws=(2,))
    assert not report.passed
    with pytest.raises(LawBroken, match="law 2"):
        report.raise_if_broken()


def test_a_pipeline_is_checked_by_its_call(tiny_latte: Any) -> None:
    call = {
        "prompt": "a red seven moving left",
        "height": 32,
        "width": 32,
        "video_length": 4,
        "clean_caption": False,
        "output_type": "latent",
        "num_inference_steps": 5,
    }
    report = check_policy(fc.FasterCache(start=0.0), tiny_latte, call, laws=(1, 2, 6, 9)).raise_if_broken()
    assert report.subject == "LattePipeline"
    assert "holds" in str(report)


def test_law_9_counts_every_tensor_a_session_reaches(latte: Specimen) -> None:
    """The walk over references sees a tensor that no history holds."""
    assert Checker(POLICIES["branch"], latte).law_9().passed
    original = fc.Session._step_ended

    def hoarding(self: fc.Session, index: int) -> None:
        original(self, index)
        for denoiser in self._denoisers:
            denoiser.hoard = torch.zeros(1000)  # type: ignore[attr-defined]

    fc.Session._step_ended = hoarding  # type: ignore[method-assign]
    try:
        assert Checker(POLICIES["branch"], latte).law_9().passed is False
    finally:
        fc.Session._step_ended = original  # type: ignore[method-assign]


def test_site_flops_add_up(latte: Specimen) -> None:
    (found,) = take_inventory(latte.pipe, latte.generate)
    flops = found.site_flops
    with fc.attach(latte.pipe, fc.NoCache()) as session:
        latte.generate()
        assert flops["denoiser"] == session.last.flops[0] == 2 * flops["branch"]
        shares = session.flop_shares()
    assert all(flops[name] == round(share * flops["denoiser"]) for name, share in shares.items())
    blocks = {s.name for s in found.sites if s.kind == "block"}
    assert flops["stack"] == sum(flops[name] for name in blocks) < flops["denoiser"]
    assert all(flops[s.name] < flops[s.name.rsplit(".", 1)[0]] for s in found.sites if s.role)
