"""Guidance-branch policies: their tables, and what they put in place of a branch against numpy, on real pipelines.

Every value is compared as the pipeline gets it, batched (Latte) and separate (Wan): the denoiser's outputs of a run
under the policy, by step and branch, are seen from outside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastercache as fc
from fastercache.attachment import denoisers_of
from fastercache.policies import (
    AdaptiveGuidance,
    BranchReuse,
    CFGCache,
    Compose,
    GuidanceInterval,
    GuidanceReuse,
    Hold,
    Kind,
    Linear,
    Policy,
    Run,
    Site,
    StaticInterval,
    Taylor,
    compile_policy,
)
from fastercache.policies.predictors.frequency import split_bands
from fastercache.zoo import build
from fastercache.zoo.specimen import Specimen

SITES = (Site("denoiser", Kind.DENOISER), Site("branch", Kind.BRANCH))
STEPS = 8
Outputs = dict[str, list[np.ndarray]]


def letters(policy: Policy, count: int) -> dict[str, list[str]]:
    """By site, the row of each branch."""
    table = compile_policy(policy, Run.of(count, sites=SITES))
    return {s.name: ["".join("CR-"[c] for c in row) for row in table.codes[i]] for i, s in enumerate(table.sites)}


def test_tables() -> None:
    assert letters(GuidanceReuse(interval=3, start=0.0), 7) == {"branch": ["-------", "CRRCRRC"]}
    assert letters(GuidanceInterval(start=0.25, stop=0.75), 9) == {"branch": ["---------", "CRCCCCRRR"]}
    assert letters(BranchReuse(other_interval=3, start=0.0), 7) == {"denoiser": ["CCCCCCC", "CRRCRRC"]}
    both = BranchReuse(interval=2, other_interval=4, start=0.25)
    assert letters(both, 9) == {"denoiser": ["CCCRCRCRC", "CCCRRRCRR"]}
    nested = Compose([StaticInterval(sites="denoiser", interval=2), GuidanceReuse(interval=4, start=0.0)])
    # the conditional output every second step; its difference to the other one every fourth
    assert letters(nested, 9) == {"denoiser": ["CRCRCRCRC", "CR-RCR-RC"], "branch": ["-" * 9, "C-R-C-R-C"]}


@pytest.mark.parametrize("family", ["latte", "wan"])
def test_a_run_does_what_the_table_says(specimens: dict[str, Specimen], family: str) -> None:
    """Also where a step predicts the branch and the next one reuses the denoiser: its value was not computed there."""
    for interval in (2, 3, 4):
        policy = Compose([StaticInterval(sites="denoiser", interval=2), GuidanceReuse(interval=interval, start=0.0)])
        with fc.attach(specimens[family].pipe, policy) as session:
            specimens[family].generate(steps=STEPS)
            trace = session.last
        assert np.array_equal(trace.codes, compile_policy(policy, trace.run).codes)


@pytest.fixture(scope="module")
def specimens() -> dict[str, Specimen]:
    return {name: build(name) for name in ("latte", "wan")}


def run(specimen: Specimen, policy: Policy) -> tuple[Outputs, Any]:
    """What the pipeline received from the denoiser under a policy, by branch and step, and the run's trace."""
    outputs: Outputs = {"cond": [], "uncond": []}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output.sample
        if specimen.name == "latte":  # one call, rows (uncond, cond)
            for branch, rows in zip(("uncond", "cond"), value.chunk(2), strict=True):
                outputs[branch].append(rows.double().numpy())
        else:  # two calls, cond first
            branch = "cond" if len(outputs["cond"]) == len(outputs["uncond"]) else "uncond"
            outputs[branch].append(value.double().numpy())

    with fc.attach(specimen.pipe, policy) as session:
        ((_, denoiser),) = denoisers_of(specimen.pipe)
        handle = denoiser.register_forward_hook(note)
        try:
            with torch.no_grad():
                specimen.generate(steps=STEPS)
        finally:
            handle.remove()
        return outputs, session.last


def forecast(kind: str, past: list[tuple[int, np.ndarray]], step: int) -> np.ndarray:
    """Hold, line and second-order Taylor series through the last computed values."""
    (a, value), before = past[-1], past[:-1]
    if kind == "hold" or not before:
        return value
    b, older = before[-1]
    slope = (value - older) / (a - b)
    k = step - a
    if kind == "linear" or len(before) < 2:
        return value + slope * k
    c, oldest = before[-2]
    bend = (slope - (older - oldest) / (b - c)) / (a - b)
    return value + slope * k + bend * k * k / 2


KINDS = {"hold": Hold(), "linear": Linear(), "taylor": Taylor(order=2)}


@pytest.mark.parametrize("family", ["latte", "wan"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_difference_is_forecast(specimens: dict[str, Specimen], family: str, kind: str) -> None:
    """uncond = cond + f(differences at the full steps), cond being computed at every step."""
    policy = GuidanceReuse(interval=2, start=0.0, stand_in=KINDS[kind])
    got, trace = run(specimens[family], policy)
    codes = trace.codes[0, 1]
    assert "".join("CR"[c] for c in codes) == "CRCRCRCR"
    past: list[tuple[int, np.ndarray]] = []
    for i, code in enumerate(codes):
        delta = got["uncond"][i] - got["cond"][i]
        if code == 0:
            past.append((i, delta))
        else:
            expected = forecast(kind, past, i)
            np.testing.assert_allclose(delta, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("family", ["latte", "wan"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_branch_is_forecast_by_itself(specimens: dict[str, Specimen], family: str, kind: str) -> None:
    """Each branch's stand-in is made of its own outputs, at its own distances."""
    policy = BranchReuse(interval=2, other_interval=3, start=0.0, stand_in=KINDS[kind])
    got, trace = run(specimens[family], policy)
    for b, branch in enumerate(("cond", "uncond")):
        codes = trace.codes[0, b]
        assert "".join("CR"[c] for c in codes) == ("CRCRCRCR", "CRRCRRCR")[b]
        past: list[tuple[int, np.ndarray]] = []
        for i, code in enumerate(codes):
            value = got[branch][i]
            if code == 0:
                past.append((i, value))
            else:
                expected = forecast(kind, past, i)
                np.testing.assert_allclose(value, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("family", ["latte", "wan"])
@pytest.mark.parametrize("band", ["low", "high", "larger"])
def test_the_interval_follows_the_drift_of_a_band(specimens: dict[str, Specimen], family: str, band: str) -> None:
    """Full steps come after floor(threshold / drift per step) steps, the drift measured on the band's own values."""
    threshold, limit = 0.5, 5
    policy = AdaptiveGuidance(threshold=threshold, max_interval=limit, start=0.0, band=band)
    got, trace = run(specimens[family], policy)
    full: list[int] = []
    bands: list[list[np.ndarray]] = []
    due, expected = 0, ""
    for i in range(STEPS):
        if i < due:
            expected += "R"
            continue
        delta = torch.from_numpy(got["uncond"][i] - got["cond"][i])
        frames = delta.float()[:, :4] if delta.shape[1] == 8 else delta.float()
        parts = [p.double().numpy() for p in split_bands(frames, min(frames.shape[-2:]) // 5)]
        due = i + 1
        if full:
            drifts = [
                np.abs(new - old).mean() / np.abs(old).mean() / (i - full[-1])
                for new, old in zip(parts, bands[-1], strict=True)
            ]
            drift = {"low": drifts[0], "high": drifts[1], "larger": max(drifts)}[band]
            due = i + min(max(int(threshold / drift), 1), limit)
        full.append(i)
        bands.append(parts)
        expected += "C"
    assert "".join("CR"[c] for c in trace.codes[0, 1]) == expected


@pytest.mark.parametrize("family", ["latte", "wan"])
def test_outside_its_window_guidance_is_off(specimens: dict[str, Specimen], family: str) -> None:
    """There the two branches' outputs are one, as without guidance; inside it they are the computed ones."""
    got, trace = run(specimens[family], GuidanceInterval(start=0.25, stop=0.75))
    for i, code in enumerate(trace.codes[0, 1]):
        same = np.array_equal(got["uncond"][i], got["cond"][i])
        assert same == (code == 1)
    assert 2 < (trace.codes[0, 1] == 1).sum() < STEPS - 2


@pytest.mark.parametrize("family", ["latte", "wan"])
def test_reuse_of_both_branches(specimens: dict[str, Specimen], family: str) -> None:
    """The whole denoiser every second step, and of those steps every second without the unconditional branch."""
    nested = Compose([StaticInterval(sites="denoiser", interval=2), CFGCache(interval=4, start=0.0, offset=0)])
    got, trace = run(specimens[family], nested)
    assert trace.speedup_flops == pytest.approx(STEPS * 2 / (4 + 2), rel=1e-2)
    for i in (1, 3, 5, 7):  # nothing ran: the conditional output is held, the other where it was computed last
        np.testing.assert_array_equal(got["cond"][i], got["cond"][i - 1])
        np.testing.assert_array_equal(got["uncond"][i], got["uncond"][i // 4 * 4])


# A mean and a checkerboard, whose frequencies are the lowest and the highest there are.
BOARD = torch.tensor([[(-1.0) ** (i + j) for j in range(10)] for i in range(10)]).reshape(1, 1, 10, 10)


@pytest.mark.parametrize(
    ("band", "change"),
    [
        ("low", 1 / 4),  # the mean goes from 4 to 5
        ("high", 1.0),  # the checkerboard from 1 to 2
        ("larger", 1.0),
        ("all", 1 / 4),  # |1 +- 1| over |4 +- 1|, on average 1 over 4
    ],
)
def test_the_drift_is_that_of_the_band_that_counts(band: Any, change: float) -> None:
    old, new = 4 + BOARD, 5 + 2 * BOARD
    rule = AdaptiveGuidance(band=band)
    assert rule._change(new, old) == pytest.approx(change, rel=1e-5)
    assert rule._change(old, old) == pytest.approx(0.0, abs=1e-6)
    assert rule._change(torch.ones(1, 1, 10, 8), old) == float("inf")


def test_the_next_full_step_is_due_before_the_difference_has_drifted_too_far() -> None:
    """After the first full step nothing is known of its drift, so the next step is full too."""
    rule = AdaptiveGuidance(band="all", threshold=0.35, max_interval=5, start=0.0)
    steps = Run.of(20).steps
    value = torch.ones(1, 1, 4, 4)

    def reused(state: Any) -> list[int]:
        return [i for i in range(state.step + 1, 20) if rule.reuse(state, steps[i], None)]

    assert not rule.reuse(None, steps[0], None)
    first = rule.update(None, steps[2], value)
    assert reused(first) == [] and first.delta is value
    assert reused(rule.update(first, steps[3], 1.1 * value)) == [4, 5], "0.1 a step: 3 steps until 0.35 is passed"
    assert reused(rule.update(first, steps[4], 1.2 * value)) == [5, 6], "0.2 in two steps is 0.1 a step"
    assert reused(rule.update(first, steps[3], value)) == [4, 5, 6, 7], "no drift: as seldom as is allowed"
    assert reused(rule.update(first, steps[3], 1.01 * value)) == [4, 5, 6, 7]
    assert reused(rule.update(first, steps[3], 3 * value)) == []
    late = AdaptiveGuidance(band="all", threshold=0.35, max_interval=5, start=5 / 19, stop=6 / 19)
    state = late.update(first, steps[3], value)
    assert [i for i in range(4, 20) if late.reuse(state, steps[i], None)] == [5]


def test_the_radius_of_the_low_band_is_that_of_a_frame_of_a_video() -> None:
    """A latent (B, C, 2 frames, 10, 10): one wave across is low at 10 // 5, and would be high at 2 // 5."""
    across = torch.cos(2.0 * torch.pi * torch.arange(10) / 10).expand(1, 1, 2, 10, 10)
    board = BOARD[:, :, None].expand(1, 1, 2, 10, 10)
    old, new = 4 + across + board, 4 + 6 * across + 2 * board
    assert AdaptiveGuidance(band="high")._change(new, old) == pytest.approx(1.0, rel=1e-5)
    low = float((5 * across).abs().mean() / (4 + across).abs().mean())
    assert AdaptiveGuidance(band="low")._change(new, old) == pytest.approx(low, rel=1e-5)


@pytest.mark.parametrize(("divisor", "low"), [(1, True), (2, True), (5, False)])
def test_the_radius_of_the_low_band_follows_the_divisor(divisor: int, low: bool) -> None:
    """Four waves across 10 columns are low at a radius of 10 // 2, and high at 10 // 5."""
    across = torch.cos(2.0 * torch.pi * 4 * torch.arange(10) / 10).expand(1, 1, 10, 10)
    old, new = 4 + across, 4 + 3 * across
    changed = AdaptiveGuidance(band="low", divisor=divisor)._change(new, old)
    assert changed == pytest.approx(float((2 * across).abs().mean() / old.mean()) if low else 0.0, rel=1e-4, abs=1e-6)
