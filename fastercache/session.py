"""A session: one policy attached to one pipeline or denoiser, its runs and their traces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from fastercache.applied import Applied, Source
from fastercache.model.experts import with_denoisers
from fastercache.model.families import COMPONENTS, Guidance
from fastercache.model.flops import FlopBook
from fastercache.model.layout import leading_tensor, timestep_of
from fastercache.picking import Pick
from fastercache.policies.base import Citation, Policy
from fastercache.policies.errors import AttachError, FasterCacheError, NotFinite
from fastercache.policies.notebook import Shown
from fastercache.policies.rules import begin_all
from fastercache.policies.vocabulary import OUTER, Branch, Kind, Run, Site, select
from fastercache.policies.wrappers import citations_of
from fastercache.run.caller import Caller
from fastercache.run.calls import RunState, Watcher
from fastercache.run.clock import Clock
from fastercache.run.compiled import sites_wanted_of
from fastercache.run.denoiser import Denoiser
from fastercache.run.idle import warn_if_idle
from fastercache.run.inspection import Inspection
from fastercache.run.memory import CacheTooLarge, MemoryForecast, MemoryPlan
from fastercache.run.parallel import Ranks
from fastercache.run.plan import RunPlan
from fastercache.run.signals import Jury
from fastercache.run.store import History
from fastercache.run.trace import Trace
from fastercache.run.transfer import Transfers
from fastercache.run.units import Duty
from fastercache.run.writer import TraceWriter
from fastercache.tuned import UNCOVERED, TunedConfig


class _DryRun(Exception):
    """Stops a pipeline once `Session.plan` knows what it needs."""


class Watch:
    """A registered watcher; `close()` ends it."""

    def __init__(self, session: Session, sites: tuple[Site, ...], watcher: Watcher) -> None:
        self._session, self.sites, self._watcher = session, sites, watcher

    def close(self) -> None:
        """Stop watching."""
        self._session._unwatch(self.sites, self._watcher)


class Session(Shown):
    """What `attach` returns. Use it as a context manager, or call `detach()`.

    Attributes:
        sites: every site found, in execution order.
        traces: those of the last few runs, the newest last.
    """

    def __init__(
        self,
        denoisers: Sequence[tuple[str, nn.Module]],
        pipe: Any | None,
        applied: Applied,
        *,
        guidance: Guidance | None = None,
        branches: Sequence[Branch] | None = None,
        cache_dtype: torch.dtype | None = None,
        cache_device: str | torch.device | None = None,
        max_cache_bytes: int | None = None,
        keep_traces: int = 8,
    ) -> None:
        self.pipe = pipe
        self._applied = applied
        self.traces: list[Trace] = []
        self._keep_traces = keep_traces
        self._cache_dtype = cache_dtype
        self._cache_device = torch.device(cache_device) if cache_device is not None else None
        self._transfers = Transfers() if self._cache_device is not None else None
        self._max_cache_bytes = max_cache_bytes
        self._memory: MemoryPlan | None = None
        self._forecast = MemoryForecast(cache_dtype)
        self._dry = False
        self._book = FlopBook()
        self._watches: list[Watch] = []
        self._plan: RunPlan | None = None  # of the newest run
        self._writer: TraceWriter | None = None  # of the present run's trace
        self._unchecked: Trace | None = None  # the newest run, until it is known whether it reused anything
        self._attached = False
        self._denoisers: list[Denoiser] = []
        self._clock = Clock(getattr(pipe, "scheduler", None), self._step_ended, self._run_announced, self._in_call)
        self._caller = Caller(pipe, self._call_ended, self._check_denoisers)
        try:
            for prefix, module in denoisers:
                self._denoisers.append(
                    Denoiser(
                        module,
                        prefix,
                        pipe,
                        guidance,
                        branches,
                        self._clock,
                        self._caller,
                        self._book,
                        self._begin_run,
                        self._forget_run,
                        self._sites_shown,
                    )
                )
            self.sites = tuple(site for d in self._denoisers for site in d.sites)
            self._claim(applied.policy)
            for denoiser in self._denoisers:
                denoiser.install(self)
        except BaseException:
            self._remove()
            raise
        self._attached = True

    # -- use ---------------------------------------------------------------------------------------------------------
    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
                self._call_ended(None)
        finally:
            self.detach()

    def detach(self) -> None:
        """Restore every forward and drop every cached value. Calling it again does nothing."""
        if self._attached:
            self._attached = False
            self._close_trace()
            self._remove()

    def _remove(self) -> None:
        self._clock.remove()
        self._caller.remove()
        for denoiser in reversed(self._denoisers):  # the last to tap a method of the pipeline gives it back first
            denoiser.clear()
            denoiser.remove()

    def _check_denoisers(self) -> None:
        """Raises AttachError where the pipeline's denoiser is no longer the one that the session is attached to."""
        there = [module for name in COMPONENTS if isinstance(module := getattr(self.pipe, name, None), nn.Module)]
        for denoiser in self._denoisers:
            if not any(part is denoiser.module for module in there for part in module.modules()):
                raise AttachError(
                    f"the {type(self.pipe).__name__} has another denoiser now than the one that this session is "
                    "attached to, so nothing would be cached: detach the session and attach again"
                )

    @property
    def attached(self) -> bool:
        """Whether the session's hooks are in place."""
        return self._attached

    def _facts(self) -> dict[str, object]:
        return {
            "policy": self.policy,
            "attached": self._attached,
            "sites": len(self.sites),
            "last": self.traces[-1] if self.traces else "no run yet",
        }

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._applied.policy

    @property
    def tuned(self) -> TunedConfig | None:
        """The tuned config that the policy comes from; None where it was given as a policy, or a difference to what it
        was made for was allowed: what was promised holds for what it was made for."""
        return self._applied.promised

    def use(
        self,
        policy: Source | None = None,
        *,
        speedup: float | None = None,
        budget: str | None = None,
        quality: str | None = None,
    ) -> None:
        """Swap the policy between two runs, or pick another plan of the dial that was attached.

        Args:
            policy: as for `attach`; None to pick from the dial. speedup, budget, quality: as for `attach`.

        Raises:
            AttachError: in the middle of a run, or if there is no dial. Otherwise as `attach`. The old policy stays.
        """
        if not self._attached:
            raise AttachError("this session is detached: attach again to use another policy")
        if self._writer is not None:
            trace = self._writer.trace
            raise AttachError(
                f"a run is under way, {trace.reached} of {trace.run.count} steps are done: swap the policy before or "
                "after it (a loop of your own that was broken off ends with the next session.start)"
            )
        before = self._applied
        pick = Pick(speedup, budget, quality)
        applied = Applied.of(self._target, policy, before, pick=pick, allow=before.allow)
        self._claim(applied.policy)
        self._applied = applied
        self._plan = None

    @property
    def _target(self) -> Any:
        """What the session is attached to."""
        return self._denoisers[0].module if self.pipe is None else self.pipe

    def _claim(self, policy: Policy) -> None:
        with sites_wanted_of(denoiser.module for denoiser in self._denoisers):
            claimed = policy.claims(self.sites)
        if not claimed:
            raise AttachError(f"{policy.name} claims no site of this model, so it would do nothing")

    def _sites_shown(self) -> None:
        """A first call has shown other sites than the structure had suggested."""
        self.sites = tuple(site for d in self._denoisers for site in d.sites)
        self._claim(self.policy)
        self._plan = None

    def start(self, timesteps: Sequence[float] | Tensor) -> None:
        """Announce a run of a sampling loop of your own: its timesteps, in order."""
        self._run_announced()
        self._clock.start(timesteps)

    def finish(self) -> None:
        """End a run of your own loop, where guidance was off in its last step: no call tells that another will follow.

        Leaving the session's `with` does the same.
        """
        self._clock.finish()

    @contextmanager
    def branch(self, *names: Branch) -> Iterator[None]:
        """Name the branch of the denoiser calls inside, or its branches in row order, for loops of your own.

        A step may mix both: a pair in one call, a third branch in a call of its own. Attach with guidance="separate".
        """
        for denoiser in self._denoisers:
            denoiser.branches.explicit = names
        try:
            yield
        finally:
            for denoiser in self._denoisers:
                denoiser.branches.explicit = ()

    def watch(self, query: str, watcher: Watcher) -> Watch:
        """Call `watcher(Observation)` with the value of each matching site, at every step and branch it is reached.

        Takes effect with the next run. Raises NoSiteMatched.
        """
        watch = Watch(self, select(query, self.sites), watcher)
        self._watches.append(watch)
        return watch

    def _unwatch(self, sites: tuple[Site, ...], watcher: Watcher) -> None:
        self._watches = [w for w in self._watches if w._watcher is not watcher or w.sites != sites]

    @property
    def last(self) -> Trace:
        """The newest trace. Raises FasterCacheError before the first run."""
        if not self.traces:
            raise FasterCacheError("no run has been made in this session yet: call the pipeline first")
        return self.traces[-1]

    def summary(self) -> str:
        """The last run in one line, with the certificate of a tuned config that has one and was made for such a run."""
        t, promised = self.last, ""
        if self.tuned is not None and self.tuned.certificate is not None:
            covered = not self.tuned.differences(self._target, t.latent)
            promised = f"; {self.tuned.certificate.words if covered else UNCOVERED}"
        return (
            f"{self.policy.name}: {t.steps_in_words}, {t.share():.0%} of {len(t.sites)} sites' decisions reused, "
            f"computed FLOPs {t.total_flops / 1e9:.2f} G of {sum(t.flops_full) / 1e9:.2f} G "
            f"({t.speedup_flops:.2f}x), {t.cached_bytes / 2**20:.2f} MiB cached at most, {t.seconds:.2f} s{promised}"
        )

    def inspect(self) -> Inspection:
        """What the session is doing right now, for tests and tools: branches, step, and who may hold values."""
        first = self._denoisers[0].branches
        return Inspection(
            guidance=first.guidance,
            expected=first.order,
            order=first.run_order,
            groups=first.groups,
            coupled=first.coupled,
            step=self._clock.index,
            holders=tuple(value for denoiser in self._denoisers for value in vars(denoiser).values()),
        )

    def flop_shares(self) -> dict[str, float]:
        """Share of a whole denoiser call's FLOPs inside each module and block site, by name, as counted so far."""
        return {d.prefix + path: share for d in self._denoisers for path, share in self._book.shares(d.prefix).items()}

    @property
    def guidance(self) -> Guidance:
        """How the loop calls the denoiser: `batched`, `separate` or `none`."""
        return self._denoisers[0].branches.guidance

    @property
    def call_arguments(self) -> dict[str, Any] | None:
        """Arguments of the pipeline call that goes on, by name, without those left at their defaults; None outside."""
        return self._caller.arguments

    def citations(self) -> list[Citation]:
        """The works behind the policy in force, each once."""
        return citations_of(self.policy)

    # -- a run -------------------------------------------------------------------------------------------------------
    def _in_call(self) -> bool:
        return self._caller.inside

    def _run_announced(self) -> None:
        self._caller.check_thread()
        for denoiser in self._denoisers:
            denoiser.verify()
        self._forget_run()

    def _forget_run(self) -> None:
        """Drop every cached value, and let the next denoiser call begin a run."""
        self._close_trace()
        for denoiser in self._denoisers:
            denoiser.clear()
            denoiser.state = None
        self._caller.forget()

    def _call_ended(self, error: BaseException | None) -> None:
        """The pipeline's call has ended, wherever its run stood."""
        if error is None:
            self._check_finite(last=True)
        self._forget_run()
        if error is None and self._unchecked is not None:
            warn_if_idle(self._unchecked, self._plan.table if self._plan is not None else None)
        self._unchecked = None

    def _begin_run(self, denoiser: Denoiser, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """At the first denoiser call of a run: read the clock and branches, claim sites, compile, reset."""
        scheduler = getattr(self.pipe, "scheduler", None)
        if scheduler is not None and scheduler is not self._clock.scheduler:
            self._clock.tap(scheduler)
            self._clock.pending = True
        batch = leading_tensor(args, kwargs).shape[0]
        self._caller.begin(self._clock.manual)
        self._clock.begin(timestep_of(args, kwargs), self.pipe)
        if len(self._denoisers) > 1:
            self._clock.steps = with_denoisers(self.pipe, self._clock.steps)
        branches = denoiser.branches.begin(batch, kwargs)
        for other in self._denoisers:
            if other is not denoiser:
                other.branches.begin(batch, kwargs)
            other.branches.check_order(args, kwargs)
        sites = self.sites if len(branches) > 1 else tuple(s for s in self.sites if s.kind is not Kind.BRANCH)
        run = Run(self._clock.steps, branches, sites)
        latent = tuple(leading_tensor(args, kwargs).shape[1:])
        self._applied.check_run(self._target, self.pipe, run, latent, self.guidance, self._caller.arguments)
        plan = self._plan_of(run)
        duties = self._duties(plan, run)
        for d in self._denoisers:
            mine = {site: duty for site, duty in duties.items() if self._owner(site) is d}
            d.begin(RunState(run, d.branches.coupled, d.branches.unsure), mine)
        rows = [self._owner(site).units[site.name].rows for site in plan.assigned]
        writer = TraceWriter(run, plan, rows, latent, self._book)
        kind = type(denoiser.module)  # shapes are known of the denoiser that is called, and of another of its class
        known = {site for site in plan.assigned if type(self._owner(site).module) is kind}
        shapes, told = denoiser.measure(args, kwargs), denoiser.branches
        self._memory = self._forecast.of(plan, known, shapes, told.groups, told.cond_last)
        if self._dry:
            raise _DryRun
        try:
            self._memory.check(self._max_cache_bytes)
        except FasterCacheError:
            self._run_announced()
            raise
        self.traces = [*self.traces, writer.trace][-self._keep_traces :]
        self._caller.claim()
        self._writer, self._unchecked = writer, writer.trace
        for d in self._denoisers:
            d.writer = writer
        writer.start()

    def _plan_of(self, run: Run) -> RunPlan:
        """The policy's plan for such a run; that of the run before, where it was alike."""
        if self._plan is None or self._plan.policy is not self.policy or self._plan.run != run:
            self._plan = RunPlan.of(self.policy, run)
        return self._plan

    def _duties(self, plan: RunPlan, run: Run) -> dict[Site, Duty]:
        """What there is to do in a run: at governed sites the plan's decisions, or its rules with fresh states; at
        watched ones, whom to tell."""
        watchers = self._watchers(run)
        duties: dict[Site, Duty] = {}
        firsts: dict[tuple[int, str], dict[Branch, Any]] = {}
        for s, (site, assigned) in enumerate(plan.assigned.items()):
            ranks = Ranks.of(self._owner(site).module)
            if ranks is not None:
                ranks.check(plan.policy, site, assigned.predictor)
            history = History(
                assigned.predictor,
                self._cache_dtype,
                self._cache_device,
                self._transfers,
                seen_by_first=site.kind in OUTER,
            )
            told = watchers.pop(site, ())
            if plan.table is None:
                jury = Jury(assigned.rule, site, begin_all(assigned.rule, site, run, firsts), ranks)
                duties[site] = Duty(history, jury=jury, watchers=told, policy=plan.policy.name)
            else:
                duties[site] = Duty(history, plan.cells[s], watchers=told, policy=plan.policy.name)
        return duties | {site: Duty(watchers=told) for site, told in watchers.items()}

    def _watchers(self, run: Run) -> dict[Site, tuple[Watcher, ...]]:
        """Who watches which site of a run."""
        known = {site.name for site in run.sites}
        found: dict[Site, tuple[Watcher, ...]] = {}
        for watch in self._watches:
            for site in watch.sites:
                if site.name in known or site.kind is Kind.STACK:
                    found[site] = (*found.get(site, ()), watch._watcher)
        return found

    def plan(self, **call: Any) -> MemoryPlan:
        """Cached bytes of a run before it is made: exact for a static policy, a bound for a dynamic one.

        With keyword arguments the pipeline is called with them and stopped at its first denoiser call, once that call's
        shapes are known; without, the plan of the newest run is returned.

        Raises:
            FasterCacheError: without arguments before the first run, or for a bare denoiser.
        """
        if call:
            if self.pipe is None:
                raise FasterCacheError(
                    "plan(...) with arguments needs a pipeline: run your loop once, then call plan()"
                )
            self._dry = True
            try:
                self.pipe(**call)
            except _DryRun:
                pass
            finally:
                self._dry = False
                self._run_announced()
        if self._memory is None:
            raise FasterCacheError("no run has been made yet: call plan(prompt=..., ...) with the pipeline's arguments")
        return self._memory

    def _owner(self, site: Site) -> Denoiser:
        """The denoiser a site belongs to."""
        return next(d for d in self._denoisers if d.prefix.removesuffix("/") == site.denoiser)

    def _step_ended(self, index: int) -> None:
        writer = self._writer
        if writer is None:
            return
        self._check_finite(last=index == writer.trace.run.count - 1)
        held: dict[int, int] = {}
        for denoiser in self._denoisers:
            denoiser.release(index)
            held |= denoiser.held()
        total = sum(held.values())
        writer.step_ended(index, total)
        if self._max_cache_bytes is not None and total > self._max_cache_bytes:
            raise CacheTooLarge(
                f"{self.policy.name} held {total} bytes after step {index}, more than "
                f"max_cache_bytes={self._max_cache_bytes}, and than its rules say they remember: raise the limit"
            )
        if writer.trace.complete:
            self._close_trace()
            self._caller.forget()
            for denoiser in self._denoisers:
                denoiser.clear()

    def _check_finite(self, last: bool) -> None:
        try:
            for denoiser in self._denoisers:
                denoiser.finite.check(last)
        except NotFinite:
            self._forget_run()
            raise

    def _close_trace(self) -> None:
        """The present run is over, complete or not."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
