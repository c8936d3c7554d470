"""Sensitivity by injection: what an error at one step does to the end of a run, measured by putting it there.

One uncached run is kept. Then each injected run puts an error into one group of sites at one step m. Steps before m are
not computed again: their outputs are known. Three sizes are read off, all root mean squares:

    relative   the error that was put in, over the value at the sites
    output     what F_m is off by, the denoiser's output as the sampler uses it (guidance done)
    latent     what the last latent is off by;  video: what the video is off by, pixels in [0, 1]

Two kinds of error can be put in. `noise`: independent normal numbers of a stated relative size, which tell how
sensitive a site is to errors of any kind. `hold`: the value of the step before in place of its own, the error that
reuse makes; it is like itself in all guidance branches, and noise is not.

Where the sampler is affine in the outputs, what it alone makes of an error is known without a run: |h_m|, its impulse
response (`response`). That takes the denoiser's later outputs as they were. An injected run computes them on the
latent that is off, so `latent / output` holds the denoiser's own answer too. With `follow=False` the later outputs are
those of the uncached run, and then the two are the same number, measured and computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastercache.analysis.faults import Error, Fault, Injecting, Uncached, rms
from fastercache.analysis.trajectory import Floats
from fastercache.attachment import denoisers_of
from fastercache.policies.errors import RecordingError
from fastercache.policies.vocabulary import Kind, Site
from fastercache.run.sampler import Denoisers, Lane

__all__ = ["SIZE", "Error", "Injected", "inject", "price", "spread"]

SIZE = 0.01
"""Relative size of injected noise: far above rounding, and small enough that twice as much does twice as much."""
FIRST = 1
"""The first step that an error is put into: every cache computes step 0."""


@dataclass(frozen=True)
class Injected:
    """What G groups of sites do at N steps.

    Attributes:
        groups: their names. sites: how many sites each has. steps: (N,) where the error was put in.
        error: its kind. followed: whether the denoiser was computed on the latents that are off.
        relative, output, latent, video: (G, N), see the module.
        impulse: (n,) |h_m| at each of the run's steps, what the sampler alone makes of an error; None where it is not
            affine in the outputs.
        generations: denoiser calls made, in uncached generations, the first one included.
    """

    groups: tuple[str, ...]
    sites: tuple[int, ...]
    steps: tuple[int, ...]
    error: Error
    followed: bool
    relative: Floats
    output: Floats
    latent: Floats
    video: Floats
    impulse: Floats | None
    generations: float

    @property
    def runs(self) -> int:
        """Injected runs."""
        return len(self.groups) * len(self.steps)

    @property
    def computed(self) -> Floats | None:
        """(N,): `impulse` at the injected steps."""
        return None if self.impulse is None else self.impulse[list(self.steps)]

    @property
    def passed(self) -> Floats:
        """(G, N): change of the last latent per change of the output at the step, the measured `computed`.

        NaN where the output did not change.
        """
        return _over(self.latent, self.output, np.nan)

    @property
    def gain(self) -> Floats:
        """(G, N): what the video is off by per relative error of a whole group; 0 where there was none.

        The value of the step before is no error where a site gives the same at both.
        """
        return _over(self.video, self.relative, 0.0)

    @property
    def per_site(self) -> Floats:
        """(G, N): what the video is off by for a relative error of 1 at one site of a group, to first order.

        Errors of a group's sites are taken as independent, so that their squares add.
        """
        found: Floats = self.gain / np.sqrt(np.array(self.sites, dtype=np.float64))[:, None]
        return found

    def factors(self, count: int) -> dict[str, Floats]:
        """`per_site` of each group at each of a run's steps, (count,)."""
        return {name: self.between(row, count) for name, row in zip(self.groups, self.per_site, strict=True)}

    def between(self, row: Floats, count: int) -> Floats:
        """(N,) values at each of a run's steps, (count,): between the injected ones on a logarithmic scale."""
        found: Floats = np.exp(np.interp(np.arange(count), self.steps, np.log(np.maximum(row, 1e-300))))
        return found


def _over(above: Floats, below: Floats, otherwise: float) -> Floats:
    found: Floats = np.divide(above, below, out=np.full_like(above, otherwise), where=below > 0.0)
    return found


def spread(count: int, wanted: int) -> tuple[int, ...]:
    """`wanted` of a run's steps, evenly from the second to the last; all of them where there are not so many."""
    return tuple(int(step) for step in np.unique(np.linspace(FIRST, count - 1, min(wanted, count - 1)).round()))


def price(groups: Mapping[str, Sequence[Site]], steps: Sequence[int], count: int, error: Error = "noise") -> float:
    """Denoiser steps of `inject`, in uncached generations, the first one included."""
    total = float(count)
    for sites in groups.values():
        whole = _whole(sites)
        total += sum(count - step - whole + (error == "hold" and not whole) for step in steps)
    return total / count


def inject(
    pipe: Any,
    generate: Callable[[], Tensor],
    groups: Mapping[str, Sequence[Site]],
    steps: Sequence[int],
    *,
    error: Error = "noise",
    size: float = SIZE,
    follow: bool = True,
    seed: int = 0,
    told: Callable[[int, int], None] = lambda done, runs: None,
) -> Injected:
    """Measure the sensitivity of groups of sites.

    Args:
        pipe: a diffusers pipeline with nothing attached.
        generate: calls the pipeline once, always alike, and returns the video.
        groups: name -> sites, which are modules, or the denoiser by itself.
        steps: where to put the error in, from 1 on.
        error: its kind. size: of noise, relative to the value's root mean square.
        follow: compute the denoiser after the step; else its outputs stay those of the uncached run.
        seed: of the noise.
        told: progress: injected runs that are done, and how many there are.

    Raises:
        RecordingError: for sites of other kinds, steps outside of the run, a size that is not above 0, a sampler that
            does not run to its end, or a site that is not reached at a step.
        AttachError: if there is no scheduler to follow, or a session is attached.
    """
    _check(groups, size)
    with Denoisers(pipe) as denoisers:
        base = Uncached()
        video = _generated(denoisers, pipe, base, generate)
        count = len(base.steps)
        if wrong := [step for step in steps if not FIRST <= step < count]:
            raise RecordingError(f"errors are put in at steps {FIRST} to {count - 1} of this run, found {wrong[0]}")
        found: Floats = np.zeros((4, len(groups), len(steps)))
        calls, done = base.made, 0
        for g, sites in enumerate(groups.values()):
            for k, step in enumerate(steps):
                fault = Fault(error, size, seed + 1 + done)
                run = Injecting(base.steps, step, fault, whole=_whole(sites), follow=follow)
                with fault.around(_modules(pipe, sites), run):
                    ended = _generated(denoisers, pipe, run, generate)
                found[:, g, k] = [fault.relative, *run.sizes(), rms(ended - video)]
                if not fault.reached:
                    raise RecordingError(f"no error could be put into {sites[0].name} at step {step}: it was not run")
                calls, done = calls + run.made, done + 1
                told(done, len(groups) * len(steps))
    response = base.response
    return Injected(
        groups=tuple(groups),
        sites=tuple(len(sites) for sites in groups.values()),
        steps=tuple(steps),
        error=error,
        followed=follow,
        relative=found[0],
        output=found[1],
        latent=found[2],
        video=found[3],
        impulse=None if response.kind == "nonlinear" else np.abs(response.impulse),
        generations=calls / base.made,
    )


def _whole(sites: Sequence[Site]) -> bool:
    return sites[0].kind is Kind.DENOISER


def _check(groups: Mapping[str, Sequence[Site]], size: float) -> None:
    if size <= 0.0:
        raise RecordingError(f"the relative size of injected noise must be above 0, found {size}")
    for name, sites in groups.items():
        kinds = {site.kind for site in sites}
        if not kinds or kinds - {Kind.MODULE, Kind.DENOISER} or len(kinds) > 1:
            raise RecordingError(
                f"errors are put into modules, or into the denoiser by itself; '{name}' holds "
                f"{', '.join(sorted(kinds)) or 'no site'}"
            )


def _modules(pipe: Any, sites: Sequence[Site]) -> list[nn.Module]:
    """The modules of module sites; none for the denoiser, whose calls are answered."""
    owners = dict(denoisers_of(pipe))
    return [owners[site.denoiser].get_submodule(site.path) for site in sites if site.kind is Kind.MODULE]


def _generated(denoisers: Denoisers, pipe: Any, listener: Any, generate: Callable[[], Tensor]) -> Tensor:
    lane = Lane(pipe.scheduler, listener)
    denoisers.lead(lane)
    try:
        with torch.no_grad():
            video = generate()
        listener.made = lane.computed
        listener.ended()
        return video
    finally:
        denoisers.lead(None)
        lane.close()
