"""Policies and results show themselves in one short line, and as a table in a notebook."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastercache as fc
from fastercache.analysis import record
from fastercache.analysis.sampling import record_trajectory
from fastercache.analysis.trajectory_profile import TrajectoryProfile
from fastercache.policies.notebook import shortened, table
from fastercache.policies.predictors.fitted import Fitted, Stretch
from fastercache.tuned import Model, model_identity
from fastercache.tuner import tune
from fastercache.tuner.planning.front import Front, Point
from fastercache.zoo.specimen import Specimen


def check(one: Any, *words: str) -> None:
    """A short line and a table that hold these words."""
    line, page = repr(one), one._repr_html_()
    assert len(line) < 600 and "\n" not in line and line.startswith(type(one).__name__ + "(")
    assert len(page) < 6000 and page.startswith("<table>") and page.endswith("</table>")
    assert page.count("<tr>") == page.count("</tr>") and not re.search(r"<(?!/?(table|caption|tr|th|td)\b)", page)
    for word in words:
        assert word in line and html.escape(word) in page, word


def test_a_policy_names_what_differs_from_its_defaults() -> None:
    assert repr(fc.FORA()) == "FORA()"
    assert repr(fc.FORA(interval=3)) == "FORA(interval=3)"
    assert eval(repr(fc.FORA(interval=3)), {"FORA": fc.FORA}) == fc.FORA(interval=3)
    check(fc.FORA(interval=3), "interval", "3")
    weights = tuple(Stretch(after=k, start=k + 1, outputs=(1.0, 0.1234567), input=0.2) for k in range(0, 90, 3))
    plan = fc.Planned(steps=90, computed=tuple(range(0, 90, 3)), stand_in=Fitted(stretches=weights))
    check(plan, "Planned", "steps", "90", " ... ")
    assert "outputs" in fc.dump(plan)["stand_in"]["stretches"][0]


def test_a_run_its_session_and_its_recordings(latte: Specimen) -> None:
    with fc.attach(latte.pipe, fc.FORA(interval=3)) as session:
        check(session, "FORA(interval=3)", "no run yet")
        latte.generate(steps=4)
    check(session.last, "fora", "4 steps", "seconds")
    check(session, "Trace(policy=")
    with record(latte.pipe, "attention") as features:
        latte.generate(steps=4)
    with record_trajectory(latte.pipe) as runs:
        latte.generate(steps=4)
    check(features.profile(), "LattePipeline", "runs", "spatial")
    check(TrajectoryProfile.of(runs.recordings, latte.pipe), "LattePipeline", "steps", "4")


def test_a_front(tiny_latte: Any) -> None:
    model: Model = model_identity(tiny_latte)
    points = (Point(computed=(0,), quality={"psnr": (30.0, 32.0)}), Point(computed=(0, 1)))
    front = Front(model=model, scheduler=None, guidance_scale=None, steps=2, prompts=2, points=points, generations=2.5)
    check(front, "2.00x", "31.0 dB", "generations")


def test_a_study(tiny_latte: Any, tmp_path: Path) -> None:
    call = {"num_inference_steps": 4, "height": 32, "width": 32, "video_length": 4, "clean_caption": False}
    study = tune(tiny_latte, ["a"], budget="psnr>=1", call=call, trials=2, out=tmp_path / "study")
    check(study, "psnr>=1", f"{1.0 / study.best().ratio:.2f}x")  # type: ignore[operator]


def test_long_and_hostile_values() -> None:
    assert len(shortened(np.arange(1000).tolist())) <= 80 and shortened("a\nb") == "'a\\nb'"
    assert "<script" not in table("<script>", [("<script>", "<script>")], ("<script>",))


def test_every_cell_of_a_table_is_escaped_and_long_values_lose_their_middle() -> None:
    found = table("a&b", [("<x>", 1, "y < z"), ("b", ["<"])], ("head<",))
    for text in ("a&amp;b", "&lt;x&gt;", "y &lt; z", "[&#x27;&lt;&#x27;]", "head&lt;", ">1</td>"):
        assert text in found, text
    assert "<x>" not in found and "< z" not in found and "head<<" not in found
    text = "".join(chr(97 + i % 26) for i in range(200))
    assert shortened(text) == f"{repr(text)[:67]} ... {repr(text)[-8:]}" and len(shortened(text)) == 80
    assert shortened("x" * 78) == repr("x" * 78) and shortened("x" * 79) != repr("x" * 79)


def test_rows_become_a_frame(latte: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    with fc.attach(latte.pipe, fc.FORA(interval=3)) as session:
        latte.generate(steps=4)
    trace = session.last
    frame = trace.to_frame()
    assert len(frame) == trace.codes.size and set(frame["decision"]) >= {"computed", "reused"}
    assert (frame["decision"] == "reused").mean() == trace.share()
    one = frame[(frame["site"] == trace.sites[0].name) & (frame["branch"] == trace.run.branches[0])]
    codes = [fc.Code(int(code)).name.lower() for code in trace.codes[0, 0]]
    assert one.sort_values("step")["decision"].tolist() == codes

    with record(latte.pipe, "spatial") as features:
        latte.generate(steps=4)
    profile = features.profile()
    changes = profile.to_frame().groupby(["branch", "step"])["rel_l1"].mean()
    for branch in profile.branches:
        matrix = profile.matrix("spatial", "rel_l1", branch)
        expected = [matrix[i, i - 1] for i in range(1, 4)]
        np.testing.assert_allclose(changes[branch].tolist()[1:], expected, rtol=1e-5)
        assert np.isnan(changes[branch].iloc[0])
    league = profile.predictability("spatial").to_frame().pivot(index="predictor", columns="interval", values="error")
    assert dict(profile.predictability("spatial").league(3)) == league[3].to_dict()

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        fc.MissingDependency, match=r"Trace.to_frame needs pandas, .*: pip install pandas, or take Trace.row"
    ):
        trace.to_frame()
