"""The pipeline a command works on: a short name, a local folder or a hub id, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from fastercache.experiments import reference
from fastercache.experiments.arguments import assignments, read_prompts
from fastercache.model.families import known_families
from fastercache.policies.errors import ConfigUnreadable, InvalidPolicy, PipelineUnreadable, suggest
from fastercache.policies.wording import first_line
from fastercache.tuned import TunedConfig


@dataclass(frozen=True)
class Subject:
    """An opened pipeline.

    Attributes:
        name: what the user called it.
        pipe: the diffusers pipeline.
        call: keyword arguments of every call beside prompt, generator and output type.
        reference: whether it is one of the project's own models, for which captions and judges exist.
    """

    name: str
    pipe: Any
    call: dict[str, Any]
    reference: bool

    def captions(self, split: str) -> list[str]:
        """The reference data's captions of a split, `train` or `held_out`. Raises ConfigUnreadable if it has none."""
        return shipped_captions(self.name, split)


def shipped_captions(name: str, split: str) -> list[str]:
    """The captions that come with a reference model, of the split `train` or `held_out`.

    Raises:
        ConfigUnreadable: for any other pipeline.
    """
    if name not in reference.names():
        raise ConfigUnreadable(f"'{name}' comes without prompts: give a file with one prompt a line (--prompts FILE)")
    from fastercache.experiments.reference.data import captions

    return list(captions("held_out" if split == "held_out" else "train"))


def given_prompts(
    name: str, prompt_file: Path | None, held_out_file: Path | None, made_up: int = 0
) -> tuple[list[str], list[str]]:
    """The search and held-out prompts of a command: from files, or those that come with a reference model.

    Args:
        made_up: so many of each stand in for an estimate, where another model is given without prompts.

    Raises:
        ConfigUnreadable: for a file that cannot be read, or another model without one.
    """
    if made_up and prompt_file is None and name not in reference.names():
        return ["a prompt"] * made_up, read_prompts(held_out_file) if held_out_file else ["another prompt"] * made_up
    search = read_prompts(prompt_file) if prompt_file else shipped_captions(name, "train")
    if held_out_file:
        return search, read_prompts(held_out_file)
    return search, [] if prompt_file else shipped_captions(name, "held_out")


def open_pipeline(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    weights: bool = True,
    call: Sequence[str] = (),
    **overrides: Any,
) -> Subject:
    """Load the pipeline `name` stands for.

    Args:
        name: short name, local folder or hub id.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is a GPU where there is one.
        dtype: `auto` (float32 on the CPU, bfloat16 elsewhere), `float32`, `bfloat16` or `float16`.
        weights: False to build it from its configuration only, see `experiments.weightless`.
        call: `key=value` arguments for each call of the pipeline.
        overrides: the same as values, by the pipeline's own names; None means not given.

    Raises:
        PipelineUnreadable: if there is no such pipeline, or the folder is none.
        InvalidPolicy: if the pipeline takes no argument of a given name, or the device is not there.
    """
    place = _place(device)
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    shipped = name in reference.names()
    kinds["auto"] = torch.float32 if place.type == "cpu" or shipped else torch.bfloat16
    if dtype not in kinds:
        raise InvalidPolicy(f"no dtype is called '{dtype}'{suggest(dtype, kinds)}")
    pipe = _load(name, kinds[dtype]).to(place) if weights else _without_weights(name, kinds[dtype])
    defaults = reference.GENERATION[name].kwargs() if shipped else {}
    pipe.set_progress_bar_config(disable=True)
    given = assignments(call) | {key: value for key, value in overrides.items() if value is not None}
    known = [key for key in inspect.signature(type(pipe).__call__).parameters if key != "self"]
    for key in given:
        if key not in known:
            raise InvalidPolicy(f"{type(pipe).__name__} takes no argument '{key}'{suggest(key, known)}")
    return Subject(name, pipe, {**defaults, **given}, shipped)


def with_steps(subject: Subject) -> Subject:
    """The subject with its number of steps in the call, the pipeline's default where none was given.

    Raises:
        InvalidPolicy: if the pipeline has no such default.
    """
    if subject.call.get("num_inference_steps") is not None:
        return subject
    cls = type(subject.pipe)
    parameter = inspect.signature(cls.__call__).parameters.get("num_inference_steps")
    if parameter is None or not isinstance(parameter.default, int):
        raise InvalidPolicy(f"{cls.__name__} has no default number of steps: give --steps")
    return replace(subject, call={**subject.call, "num_inference_steps": parameter.default})


def as_made(subject: Subject, config: TunedConfig, given: Collection[str] = ()) -> Subject:
    """The subject with the steps of a config, and with its guidance scale where the pipeline's own is another.

    `given`: arguments of the call that stay as they are, because somebody typed them or wants them to differ.
    """
    call = dict(subject.call)
    parameters = inspect.signature(type(subject.pipe).__call__).parameters
    if "num_inference_steps" not in given and "num_inference_steps" in parameters:
        call["num_inference_steps"] = config.steps
    if "guidance_scale" not in given and config.guidance_scale is not None and "guidance_scale" in parameters:
        own = call.get("guidance_scale", parameters["guidance_scale"].default)
        call |= {} if own == config.guidance_scale else {"guidance_scale": config.guidance_scale}
    return replace(subject, call=call)


def _place(device: str) -> torch.device:
    """The device a name stands for. Raises InvalidPolicy if there is no such device on this machine."""
    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(1, device=place).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each backend has its own way to be absent
        reason = first_line(error).rstrip(".")
        raise InvalidPolicy(f"no device '{device}' can be used here ({reason}): give --device cpu or auto") from None
    return place


def _load(name: str, dtype: torch.dtype) -> Any:
    """A shipped pipeline, or one from a folder or the hub, with one clear reason if that fails."""
    path = Path(name).expanduser()
    shipped = name in reference.names()
    if not shipped:
        check_place(name, path)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    known_families()  # imports the denoisers of installed packages, which diffusers does not do on a folder's word
    try:
        if shipped:
            return reference.load(name, dtype=dtype)
        return DiffusionPipeline.from_pretrained(str(path) if path.is_dir() else name, dtype=dtype)
    except Exception as error:  # whatever a broken folder or a missing network makes the loaders raise
        reason = first_line(error)
        raise PipelineUnreadable(f"the pipeline {name} could not be loaded: {reason}") from error


def _without_weights(name: str, dtype: torch.dtype) -> Any:
    from fastercache.experiments import weightless

    diffusers.utils.logging.disable_progress_bar()
    return weightless.load(name, dtype)


def check_place(name: str, path: Path) -> None:
    """Raises PipelineUnreadable for what is neither a pipeline's folder nor a hub id."""
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise PipelineUnreadable(
                f"the folder {name} is no diffusers pipeline: it holds no model_index.json; "
                "give the folder that save_pretrained wrote"
            )
    elif path.exists():
        known = ", ".join(reference.names())
        raise PipelineUnreadable(f"{name} is a file: give a pipeline's folder, a hub id (owner/name) or {known}")
    elif name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise PipelineUnreadable(
            f"there is no pipeline '{name}': it is neither a folder, nor a hub id (owner/name), "
            f"nor a short name{suggest(name, reference.names())}"
        )
