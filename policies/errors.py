"""Every error a user can cause. Each message says what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST = 2000
"""Characters of the longest message; of a longer one the middle is left out."""
LONGEST_NAME = 80
"""Characters of the longest name that a similar one is looked up for."""


class FasterCacheError(Exception):
    """Base of all errors this toolkit raises on purpose; the command line prints it in one line and exits 2.

    Whatever a message quotes, it is one printable line of at most `LONGEST` characters.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


class UnknownPolicy(FasterCacheError):
    """A name of a policy, predictor or preset that nothing is registered under.

    Symptom: `no policy is called 'fastercahe'`, with the nearest name that exists.
    Cause: The name is misspelt, the package that brings the policy is not installed, or the file that defines it
        was not imported.
    Fix: Take a name that `fastercache policies` lists. For a policy of your own give its file (`--policy FILE.py`),
        or import its module before a tuned config is loaded.
    """


class InvalidPolicy(FasterCacheError):
    """A policy, predictor or call with an unknown field, a value out of bounds or of the wrong type.

    Symptom: A line that names the class, the field and the value that was found.
    Cause: A field is misspelt or outside its bounds, a class of your own lacks a part of the contract, or options
        contradict each other.
    Fix: `fastercache policies NAME` shows every field with its bounds; for a class of your own see "Writing a
        policy".
    """


class InvalidSignal(FasterCacheError):
    """A signal that does not exist, whose name is taken, or whose function gives no value with the rows of a call.

    Symptom: The line names the signal, at registration or at the first step that needs it.
    Cause: A signal's function must give a tensor with as many rows as it is given, and every signal has a name of
        its own.
    Fix: Keep the first axis in the function that `register_signal` stands above, and choose another name where one
        is taken.
    """


class InvalidFamily(FasterCacheError):
    """A model family whose description cannot be, or whose denoiser class has another one.

    Symptom: `register_family`, or the loading of an installed package, ends with a line about the family.
    Cause: The order of its branches lacks `cond` or names one twice, a field has a value that does not exist, or
        two packages describe the same denoiser.
    Fix: Correct the field that the line names; the docstring of `Family` lists what each may be. Of two packages
        remove one.
    """


class NoSiteMatched(FasterCacheError):
    """A site query that selects nothing, or cannot be read.

    Symptom: `site query 'temporl' matches none of the 31 sites`, when a policy is attached or a recording begins.
    Cause: A word is misspelt, the model has no such layers (an image model has no `temporal` ones), or a slice lies
        outside its blocks.
    Fix: `fastercache sites MODEL` lists what there is, and `--query` shows what a query selects.
    """


class NoGuidance(NoSiteMatched):
    """A site query that asks for nothing but the second guidance branch, of which there is none.

    Symptom: A policy of the site `branch` is refused when a run begins.
    Cause: Guidance is off (`guidance_scale` of 1) or distilled into the model, so each step computes one branch.
    Fix: Switch guidance on, or use a policy of other sites.
    """


class SiteConflict(FasterCacheError):
    """Two composed policies claim the same site, or two runs of blocks lie across each other.

    Symptom: `a and b both claim transformer_blocks.0.attn1`, when the composition is attached, or `stack[0:3] and
    stack[2:5] share blocks`, when a run begins.
    Cause: In `Compose` every site belongs to one part, and the queries of two parts overlap. A run of blocks may lie
    inside another, but which of two decides about a block that is in both cannot be said.
    Fix: Narrow the `sites` of one part, by a role or by a slice of blocks.
    """


class BranchUnknown(FasterCacheError):
    """The runtime cannot tell which guidance branch a denoiser call belongs to.

    Symptom: `attach`, or the first step of a run, ends with a line about branches or about rows of an argument.
    Cause: The denoiser's class is in no known family, or a call has rows that do not fit its guidance.
    Fix: Say it: `attach(..., guidance="batched")`, `"separate"` or `"none"`, and `branches=(...)` in the order of
        the rows. Nothing is guessed, because a wrong guess would mix the branches without a word.
    """


class ForeignCall(FasterCacheError):
    """The denoiser was called by something else than what the session serves: another pipeline or thread.

    Symptom: A run ends at its first denoiser call, although the pipeline is attached.
    Cause: Two pipelines share one denoiser and the other one ran, a loop of your own calls it, or two threads use
        one session.
    Fix: Attach to the pipeline that runs. For a loop of your own attach to the denoiser and call
        `session.start(timesteps)` before it. Give each thread a pipeline and a session.
    """


class ClockError(FasterCacheError):
    """The runtime cannot tell which step a denoiser call belongs to.

    Symptom: A run ends with a line about steps or timesteps.
    Cause: The denoiser is called outside a sampling loop, more often than there are steps, or with frames at
        several steps at once.
    Fix: In a loop of your own call `session.start(timesteps)` before each run; let a pipeline's scheduler set its
        timesteps.
    """


class ScheduleMismatch(FasterCacheError):
    """An explicit schedule or plan was applied to a run of another length, or with other branches or sites.

    Symptom: `this plan is for 50 steps, the run has 30`.
    Cause: A schedule names steps one by one, and a plan's weights belong to the steps that it computes.
    Fix: Run with the steps it was made for, or plan again for the new number.
    """


class AttachError(FasterCacheError):
    """A pipeline or denoiser that cannot be attached to, or is attached already, or a module that cannot be reused.

    Symptom: `attach`, or the first step, names the object or module and what is in the way.
    Cause: The object holds no denoiser, a session is attached already, another cache is switched on, or a module
        returns what no predictor can stand in for.
    Fix: Detach the other session (`detach(pipe)`) or switch off the other cache; otherwise narrow the policy's
        sites as the line says.
    """


class ConfigMismatch(FasterCacheError):
    """A tuned config, study or calibration that was made for another model, scheduler or call.

    Symptom: `this config was made for 50 steps, this call has 30`, or a study folder that refuses to go on.
    Cause: The figures in the file hold for what it was made for only, and a certification must not change after a
        look.
    Fix: Use it with what the line names, or plan anew. `allow={"steps"}` in Python and `--allow steps` in the shell
        accept one difference. For a study choose another `--study` folder.
    """


class ConfigUnreadable(FasterCacheError):
    """A tuned config, profile, prompt file or study file that is missing, truncated, of a foreign format, or cannot
    be written.

    Symptom: A line with the path and what is wrong there.
    Cause: The path is wrong, the file was cut off or edited, it was written by a newer version, or it holds fewer
        prompts than are needed.
    Fix: Correct the path, or make the file again by the command that wrote it.
    """


class PipelineUnreadable(FasterCacheError):
    """A pipeline that does not exist, a folder that is none, or a pipeline without a part that it needs.

    Symptom: A command ends before anything runs, with the name that was given.
    Cause: It is no short name, no folder with a `model_index.json` and no hub id; the network is missing; or it was
        saved without its text encoder.
    Fix: Give the folder that `save_pretrained` wrote, or a hub id (`owner/name`), and load all parts of the
        pipeline.
    """


class NotFinite(FasterCacheError):
    """A prediction, video or measurement contains NaN or infinity.

    Symptom: A run ends at the step at which the denoiser's output was no longer finite, or a metric is refused.
    Cause: Extrapolation over many steps or in half precision overflowed, or the uncached pipeline does so itself.
    Fix: Run the pipeline without a policy first. If that is sound, use a shorter interval, a lower order or
        float32.
    """


class MeasurementError(FasterCacheError):
    """Videos or tensors that cannot be compared as asked: other shapes, values outside [0, 1], an unknown metric.

    Symptom: A comparison, figure or metric ends with the shapes or values that were found.
    Cause: Videos are (N, F, 3, H, W) in [0, 1] and have the shape of their references; a metric or measure must be
        known by its name.
    Fix: Ask the pipeline for `output_type="pt"`, convert with `as_videos`, and load a metric of your own with
        `--metric FILE.py:name`.
    """


class InvalidMetric(MeasurementError):
    """A quality metric without a name, range or direction, or whose name is taken.

    Symptom: Making or registering a metric, or loading its file, ends with a line about it.
    Cause: `Metric` needs a function, `low` < `high`, a positive `unit`, and `better` as "higher" or "lower".
    Fix: Correct the argument that the line names; "Writing a policy" has an example.
    """


class RecordingError(FasterCacheError):
    """A recording without a complete run, with runs of different shape, or asked for what it does not hold.

    Symptom: A profile or plan is refused, with what the recording lacks.
    Cause: A run was interrupted, runs of several sizes or with guidance on and off were mixed, the site was not
        recorded, or memory is short.
    Fix: Record again with one call for all prompts, name the sites you need, or raise `max_bytes`.
    """


class BudgetNotMet(FasterCacheError):
    """Nothing that was tried keeps the quality budget; the message gives the closest miss.

    Symptom: `plan`, `tune` or `certify` ends with the closest candidate, and writes no tuned config or certificate.
    Cause: The budget leaves no room for reuse on this model, or the search ended before it found some.
    Fix: Lower the budget, raise `--effort` or `--trials`, or ask for a speed instead. After a failed certification
        take other prompts.
    """


class MissingDependency(FasterCacheError):
    """An optional package is needed; the message names it and the extra that installs it.

    Symptom: `LPIPS needs the package lpips, which is not installed`, with the command that installs it.
    Cause: A plain installation holds what applies a tuned config and nothing else.
    Fix: Run the `pip install` that the line gives.
    """


def suggest(found: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `found`, else the list of known names."""
    names = sorted(set(known))
    if len(found) > LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""


def printable(text: str, limit: int = LONGEST) -> str:
    """Text as one line without control characters, the middle left out where it is longer than `limit`."""
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} [...] {text[-limit // 4 :]}"
    if text.isprintable():
        return text
    text = " ".join(text.split("\n"))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any, limit: int = 80) -> str:
    """`repr` of any value for a message: bounded, and never an error itself."""
    if isinstance(value, (str, bytes)):
        value = value[:limit]
    try:
        text = repr(value)
    except Exception:  # a foreign class, nesting too deep, or a number with too many digits to print
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= limit + 2 else f"{text[:limit]}..."


def told(error: BaseException) -> str:
    """`TypeName: message` of any error, also of one whose message cannot be made."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__
