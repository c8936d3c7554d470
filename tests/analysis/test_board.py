"""What the board writes, TensorBoard's own readers find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context

from fastercache.analysis import plots
from fastercache.analysis.board import Board
from fastercache.policies.errors import NotFinite, RecordingError
from tests.analysis.test_plots import recorded, some_trace


def read(folder: Path) -> Any:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_a_profile_becomes_scalars_per_step_and_images(tmp_path: Path) -> None:
    profile = recorded()
    with Board(tmp_path) as board:
        board.add_profile(profile)
        board.add_trace(some_trace())
    events = read(tmp_path)
    scalars = events.Scalars("profile/lag1/rel_l1/temporal")
    assert [s.step for s in scalars] == [1, 2, 3, 4, 5]
    expected = plots.redundancy_info(profile).groups[1].mean[1:]
    np.testing.assert_allclose([s.value for s in scalars], expected, rtol=1e-5)
    guidance = [s.value for s in events.Scalars("profile/guidance/cosine/uncond/high")]
    np.testing.assert_allclose(guidance, profile.guidance[:, 1, :, 2, 0].mean(0), rtol=1e-5)
    assert [s.value for s in events.Scalars("trace/flops_share")] == pytest.approx([0.6] * 12)
    images = {tag.split("/", 1)[1] for tag in events.Tags()["images"]}
    assert images == {*plots.overview(profile), "timeline"}
    image = events.Images("profile/redundancy_rel_l1")[0]
    assert image.width > 500
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_trials_with_different_parameters_all_show_in_the_hparams_tab(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        board.add_trial("trials/0", {"interval": 2, "weight": {"start": 0.5}}, {"psnr": 31.0, "speedup_flops": 1.4}, 0)
        board.add_trial("trials/1", {"interval": 3, "ramp": True, "radius": None}, {"psnr": 28.0}, 1)
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    backend, request = Context(TBContext(data_provider=provider, logdir=str(tmp_path))), context.RequestContext()
    metadata = backend.hparams_metadata(request, "")
    experiment = backend.experiment_from_metadata(request, "", True, metadata, [])
    assert {h.name for h in experiment.hparam_infos} == {"interval", "weight.start", "ramp", "radius"}
    assert {m.name.tag for m in experiment.metric_infos} == {"psnr", "speedup_flops"}
    assert sorted(p.name for p in (tmp_path / "trials").iterdir()) == ["0", "1"]
    scalar = read(tmp_path / "trials" / "1").Scalars("psnr")[0]
    assert (scalar.value, scalar.step) == (28.0, 1)


def test_trials_that_cannot_be_shown_are_refused(tmp_path: Path) -> None:
    with Board(tmp_path) as board:
        board.add_trial("a", {"interval": 2}, {"psnr": 30.0})
        with pytest.raises(RecordingError, match="'a' was written"):
            board.add_trial("a", {"interval": 3}, {"psnr": 29.0})
        with pytest.raises(NotFinite, match="'psnr' of trial 'b' is nan"):
            board.add_trial("b", {"interval": 3}, {"psnr": float("nan")})
