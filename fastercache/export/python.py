"""One Python file that does what a plan says and needs torch only."""

from __future__ import annotations

from itertools import groupby

from fastercache.export.recipe import Exported, Recipe, Recipes, recipes
from fastercache.export.words import heading
from fastercache.model.layout import UNSLICED
from fastercache.tuned import TunedConfig

FILE = "cached.py"


def python(config: TunedConfig) -> Exported:
    """A module with `attach(pipe)`, which gives the same latents as the tuned config bit for bit.

    Raises:
        NotExportable: see `recipes`.
    """
    found = recipes(config)
    body = (_HEAD + (_ALIKE if found.uniform else _APART) + _TAIL).replace("$PLAN", _plan(found))
    values = {
        "$HEADING": heading(config),
        "$PIPELINE": repr(config.model.pipeline),
        "$STEPS": str(found.steps),
        "$VARIANCE": str(found.variance),
        "$BATCHED": repr(config.guidance == "batched"),
        "$ORDER": repr(found.order),
        "$WHOLE": f"{{{', '.join(map(repr, sorted(UNSLICED)))}}}",
    }
    for name, value in values.items():
        body = body.replace(name, value)
    return Exported({FILE: body})


def _plan(found: Recipes) -> str:
    """The recipes as Python source, a line for each stretch of steps with the same one."""
    if found.uniform:
        return _stretches(next(iter(found.by_branch.values())))
    return "{" + ", ".join(f"{branch!r}: {_stretches(steps)}" for branch, steps in found.by_branch.items()) + "}"


def _stretches(steps: dict[int, Recipe]) -> str:
    if not steps:
        return "{}"
    lines = []
    for (_, recipe), group in groupby(enumerate(sorted(steps)), lambda at: (at[1] - at[0], steps[at[1]])):
        served = [step for _, step in group]
        what = (recipe.of, recipe.how, list(recipe.terms))
        lines.append(f"    **dict.fromkeys(range({served[0]}, {served[-1] + 1}), {what!r}),\n")
    return "{\n" + "".join(lines) + "}"


_HEAD = '''\
"""$HEADING

    from cached import attach
    detach = attach(pipe)     # from now on every call of `pipe` follows the plan
    detach()                  # and from now on none does
"""

import functools
import types

import torch

PIPELINE = $PIPELINE
STEPS = $STEPS
# step that is not run -> what stands in for it, how, and the terms (step that was run, 0 output or 1 input, weight)
PLAN = $PLAN
VARIANCE = $VARIANCE  # whether inputs were fitted to be added to an output that has a learned variance behind it


def before_variance(output, shape):
    """The part of an output that has a shape: all, or what is before a learned variance, as Latte has it; or None."""
    if output.shape == shape:
        return output
    if output.ndim != len(shape):
        return None
    unlike = [axis for axis in range(output.ndim) if output.shape[axis] != shape[axis]]
    if len(unlike) == 1 and output.shape[unlike[0]] == 2 * shape[unlike[0]]:
        return output.narrow(unlike[0], 0, shape[unlike[0]])


def mix(how, terms, kept):
    """The stand-in for a skipped output, from what was kept: step -> (output, input)."""
    missing = [step for step, *_ in terms if step not in kept]
    if missing:
        raise RuntimeError(f"the plan builds on step {missing[0]}, which this run did not compute")
    values = [(kept[step][which], weight) for step, which, weight in terms if kept[step][which] is not None]
    first, weight = values[0]
    if how == "hold":
        return first.clone()
    if how == "lerp":
        return first.lerp(*values[1])
    total = (first.to(torch.promote_types(first.dtype, torch.float32)) if how == "wide" else first) * weight
    for value, weight in values[1:]:
        before_variance(total, value.shape).add_(value, alpha=weight)
    return total.to(first.dtype)


def tensors(output):
    """What a denoiser returned, as a list."""
    return list(output.values()) if isinstance(output, dict) else [output] if torch.is_tensor(output) else list(output)


def like(output, values):
    """A list as what a denoiser returns."""
    if isinstance(output, dict):
        return type(output)(**dict(zip(output, values)))
    return values[0] if torch.is_tensor(output) else type(output)(values)


def main_input(args, kwargs):
    named = [kwargs[name] for name in ("hidden_states", "sample", "x") if name in kwargs]
    return next(value for value in (*named, *args, *kwargs.values()) if torch.is_tensor(value))


def pair(value, source, stream):
    """A computed output to be kept, with the denoiser's input where that may be added to it."""
    if source.ndim > value.ndim:  # (videos, frames, ...) goes in, (videos * frames, ...) comes out
        source = source.flatten(0, source.ndim - value.ndim)
    if stream or (source.shape != value.shape and (not VARIANCE or before_variance(value, source.shape) is None)):
        return value.clone(), None
    return value.clone(), source.clone()

'''

_ALIKE = '''
READ = {step: i for i, (_, _, terms) in sorted(PLAN.items()) for step, *_ in terms}  # its last reader


def cached(name, forward, now):
    """A denoiser's forward under the plan. The calls of a step are told apart by their number."""

    @functools.wraps(forward)
    def run(*args, **kwargs):
        i, call = now.enter()
        kept = now.kept.setdefault((name, call), {})
        if i in PLAN:
            _, how, terms = PLAN[i]
            streams = range(len(next(iter(kept.values())))) if kept else (0,)
            return like(now.output, [mix(how, terms, {s: p[k] for s, p in kept.items()}) for k in streams])
        now.output = forward(*args, **kwargs)
        for step in [step for step in kept if READ[step] < i]:
            del kept[step]
        if READ.get(i, -1) > i:
            source = main_input(args, kwargs)
            kept[i] = [pair(value, source, k) for k, value in enumerate(tensors(now.output))]
        return now.output

    return run

'''

_APART = '''
ORDER = $ORDER  # of the rows of a call, or of the calls of a step
BATCHED = $BATCHED
READ = {(b, of, s): i for b, plan in PLAN.items() for i, (of, _, terms) in sorted(plan.items()) for s, *_ in terms}
WHOLE = $WHOLE  # arguments that have no rows


def rows(value, name, start, size, batch):
    """The same nesting with some rows only."""
    if torch.is_tensor(value):
        if name in WHOLE or value.ndim == 0 or value.shape[0] == 1:
            return value
        if value.shape[0] % batch:
            raise RuntimeError(f"the rows of the argument {name} {tuple(value.shape)} cannot be told")
        times = value.shape[0] // batch  # a row for each frame of each sample
        return value.narrow(0, start * times, size * times)
    if isinstance(value, (tuple, list)):
        return type(value)(rows(item, name, start, size, batch) for item in value)
    if isinstance(value, dict):
        return {key: rows(item, key, start, size, batch) for key, item in value.items()}
    return value


def cached(name, forward, now):
    """A denoiser's forward under the plan, for each branch its own."""

    @functools.wraps(forward)
    def run(*args, **kwargs):
        i, call = now.enter()
        source = main_input(args, kwargs)
        batch = source.shape[0]
        now.batch = now.batch or batch
        branches = (ORDER if batch == now.batch else ("cond",)) if BATCHED else ORDER[call : call + 1]
        size = batch // len(branches)
        todo = [b for b in branches if i not in PLAN[b]]
        if call == 0 or BATCHED:
            now.outputs = {}
        if todo == list(branches):
            now.output = forward(*args, **kwargs)
        elif todo:
            cut = branches.index(todo[0]) * size, size, batch
            part = {key: rows(value, key, *cut) for key, value in kwargs.items()}
            now.output = forward(*(rows(value, "", *cut) for value in args), **part)
        for k, b in enumerate(todo):
            now.outputs[b] = [t.narrow(0, k * size, size) for t in tensors(now.output)]
        for b in sorted(branches, key=lambda b: b != "cond"):
            start = branches.index(b) * size
            if i in PLAN[b]:
                of, how, terms = PLAN[b][i]
                kept = now.kept.get((b, of), {})
                streams = range(len(next(iter(kept.values()), (0,))))
                new = [mix(how, terms, {s: p[k] for s, p in kept.items()}) for k in streams]
                now.outputs[b] = [c + d for c, d in zip(now.outputs["cond"], new)] if of == "difference" else new
                continue
            for of in ("whole", "difference"):
                if READ.get((b, of, i), -1) > i:
                    values = now.outputs[b]
                    if of == "difference":
                        values = [value - cond for value, cond in zip(values, now.outputs["cond"])]
                    seen = source.narrow(0, start, size)
                    kept = now.kept.setdefault((b, of), {})
                    kept[i] = [pair(value, seen, k) for k, value in enumerate(values)]
                    for step in [step for step in kept if READ[b, of, step] < i]:
                        del kept[step]
        if todo == list(branches):
            return now.output
        streams = zip(*(now.outputs[b] for b in branches))
        return like(now.output, [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in streams])

    return run

'''

_TAIL = '''
class Now:
    """Where a run stands. The scheduler tells: `set_timesteps` announces a run, `step` ends a step."""

    def __init__(self, pipe):
        self.pipe, self.ready = pipe, False

    def begin(self):
        self.step, self.call, self.kept, self.ready, self.output, self.batch = 0, 0, {}, True, None, 0

    def enter(self):
        """The step and the number of a denoiser call in it."""
        if not self.ready:
            raise RuntimeError("the denoiser was called before the scheduler's set_timesteps")
        scheduler, told = self.pipe.scheduler, getattr(self.pipe, "_num_timesteps", None)
        if not isinstance(told, int) or getattr(scheduler, "order", 1) != 1:
            told = len(scheduler.timesteps) - (getattr(scheduler, "begin_index", None) or 0)
        if told != STEPS:
            raise RuntimeError(f"this plan is for {STEPS} steps, the run has {told}")
        self.call += 1
        return self.step, self.call - 1

    def follow(self, scheduler):
        """Listen to a scheduler; returns what ends that."""

        def heard(name, before):
            method = getattr(type(scheduler), name)

            @functools.wraps(method)
            def told(self, *args, **kwargs):
                before()
                return method(self, *args, **kwargs)

            setattr(scheduler, name, types.MethodType(told, scheduler))  # bound, so that a copy calls itself

        def ended():
            if self.ready and self.call:  # a second scheduler step without a call between ends nothing
                self.step, self.call = self.step + 1, 0

        heard("set_timesteps", self.begin)
        heard("step", ended)
        return lambda: [delattr(scheduler, name) for name in ("set_timesteps", "step")]


def attach(pipe):
    """Put the plan into force; returns what takes it off again."""
    if PIPELINE not in (None, type(pipe).__name__):
        raise RuntimeError(f"this plan was made for {PIPELINE}, not for {type(pipe).__name__}")
    modules = {name: getattr(pipe, name, None) for name in ("transformer", "transformer_2", "unet")}
    places = ("forward", "_compiled_call_impl")
    there = [vars(module).get(place) for module in modules.values() if module is not None for place in places]
    if any(hasattr(forward, "plan") for forward in there):
        raise RuntimeError("a plan is attached to this pipeline already: take it off first")
    if any(getattr(forward, "owner", None) is not None for forward in there):  # the mark of a session's hook
        raise RuntimeError("a session of a policy is attached to this pipeline: detach that first")
    now = Now(pipe)
    undo = [now.follow(pipe.scheduler)]
    for name, module in modules.items():
        if module is not None:
            own, before = "forward" in vars(module), module.forward
            module.forward = cached(name, before, now)
            module.forward.plan = True  # what tells a second one
            undo.append(functools.partial(setattr, module, "forward", before) if own
                        else functools.partial(delattr, module, "forward"))
    return lambda: [take_off() for take_off in undo] and None
'''
