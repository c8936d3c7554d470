"""Prompts that bring further arguments of the pipeline's call: an image, a negative prompt, embeddings, a size, a seed.

`Prompt` is text wherever text is wanted, so a list of prompts may hold both. `prompts_of` makes them from mappings of
keyword arguments.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastercache.policies.errors import FasterCacheError, suggest

Given = str | Mapping[str, Any]
"""What a prompt is given as: its text, or keyword arguments of the pipeline."""
FOR_ALL = {
    "num_inference_steps": "a schedule is for one number of steps, the same for all prompts",
    "guidance_scale": "a schedule is for one guidance scale, the same for all prompts",
    "generator": "give a whole number as `seed`",
    "output_type": "the toolkit asks for pixels",
    "return_dict": "the toolkit reads the output itself",
}
"""Arguments that no prompt may bring, and why."""


class InvalidPrompt(FasterCacheError):
    """Arguments of a prompt that its pipeline does not take, or that cannot be read.

    Symptom: `prompts.jsonl line 2, key 'image': there is no image cat.png`.
    Cause: A line of a JSON Lines file, or a mapping in Python, names an argument that the pipeline's call does not
        take, a file that does not exist, or a value of another type.
    Fix: Give each line the keyword arguments of one call of the pipeline, with `prompt` among them where it takes one;
        what is the same for all prompts (steps, guidance) belongs to `--call` and its relatives.
    """


class Prompt(str):
    """A prompt with further arguments of its pipeline's call. Two are equal only if their arguments are.

    Attributes:
        given: the arguments beside prompt and seed; an image as a path, a PIL image or a tensor.
        wordless: whether there is no text at all: embeddings take its place, or the pipeline takes none.
        seed: of its noise; None for the seed that its place in the list gives it.
        origin: where it stands, for messages: `prompts.jsonl, line 3`.
    """

    given: dict[str, Any]
    seed: int | None
    origin: str
    wordless: bool

    def __new__(cls, text: str | None, given: Mapping[str, Any], seed: int | None = None, origin: str = "") -> Prompt:
        made = super().__new__(cls, text or "")
        made.given, made.seed, made.origin, made.wordless = dict(given), seed, origin, text is None
        return made

    @property
    def digests(self) -> dict[str, Any]:
        """The further arguments as JSON values, files and tensors by a digest: what determines the output."""
        return {name: _digest(name, value) for name, value in sorted(self.given.items())}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prompt):
            return NotImplemented if not isinstance(other, str) else not self.given and str(self) == other
        mine, theirs = ((str(one), one.wordless, one.seed, one.digests) for one in (self, other))
        return mine == theirs

    def __ne__(self, other: object) -> bool:  # that of str would compare the texts
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self) -> int:
        return hash(str(self))


def prompts_of(given: Iterable[Given], origin: str = "prompt") -> list[str]:
    """Prompts from texts and mappings; each is named by its place in messages, `prompt 3`.

    Raises:
        InvalidPrompt: for a mapping that is no call of a pipeline.
    """
    return [
        one if isinstance(one, str) else prompt_of(one, f"{origin} {number}")
        for number, one in enumerate(given, start=1)
    ]


def prompt_of(arguments: Mapping[str, Any], origin: str, folder: Path | None = None) -> Prompt:
    """One prompt from keyword arguments.

    Args:
        origin: where they stand, for messages. folder: what paths are relative to; the working directory by default.

    Raises:
        InvalidPrompt: naming the key: nothing at all, a seed that is no whole number, no such file, or an argument that
            is the same for all prompts.
    """
    given = dict(arguments)
    text, seed = given.pop("prompt", None), given.pop("seed", None)
    if text is None and not given:
        raise InvalidPrompt(f"{origin} has no key 'prompt': give a text, or embeddings as prompt_embeds")
    if text is not None and not isinstance(text, str):
        raise InvalidPrompt(f"{origin}, key 'prompt': expected a text, found {type(text).__name__}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise InvalidPrompt(f"{origin}, key 'seed': expected a whole number from 0, found {seed!r:.40}")
    for name, value in given.items():
        if name in FOR_ALL:
            raise InvalidPrompt(f"{origin}, key '{name}': {FOR_ALL[name]}; leave it out")
        if is_image(name) and isinstance(value, (str, Path)):
            path = (folder or Path()) / value
            if not path.is_file():
                raise InvalidPrompt(f"{origin}, key '{name}': there is no image {path}")
            given[name] = str(path.resolve())
    return Prompt(text, given, seed, origin)


def plain(prompt: str) -> Any:
    """A prompt as JSON values, from which `prompt_of` makes it again: its text, or its keyword arguments."""
    if not isinstance(prompt, Prompt):
        return prompt
    text = {} if prompt.wordless else {"prompt": str(prompt)}
    return {**text, **({} if prompt.seed is None else {"seed": prompt.seed}), **prompt.given}


def identity(prompt: str) -> Any:
    """What tells a prompt from others, as JSON values: its text, or with what it brings, files by digest."""
    if not isinstance(prompt, Prompt):
        return prompt
    return {"prompt": str(prompt), "seed": prompt.seed, "given": prompt.digests}


def check(prompt: str, pipe: Any) -> None:
    """Whether a pipeline takes what a prompt brings, and gets the text that it needs. Raises InvalidPrompt."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    known = [name for name in parameters if name != "self"]
    worded = "prompt" in known or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if not isinstance(prompt, Prompt):
        if not worded:
            raise InvalidPrompt(
                f"{type(pipe).__name__} takes no prompt: give each case as the keyword arguments of a call instead of "
                f"a text, in a .jsonl file or as mappings; it takes {', '.join(known[:3])}, ..."
            )
        return
    if prompt.wordless and worded and "prompt_embeds" not in prompt.given:
        raise InvalidPrompt(f"{prompt.origin} has no key 'prompt': give a text, or embeddings as prompt_embeds")
    if not prompt.wordless and not worded:
        raise InvalidPrompt(f"{prompt.origin}, key 'prompt': {type(pipe).__name__} takes no prompt, so leave it out")
    for name in prompt.given:
        if name not in known:
            raise InvalidPrompt(
                f"{prompt.origin}, key '{name}': {type(pipe).__name__} takes no such argument{suggest(name, known)}"
            )


def arguments(prompt: str) -> dict[str, Any]:
    """The keyword arguments of a prompt, with images loaded. Raises InvalidPrompt for a file that is no image."""
    if not isinstance(prompt, Prompt):
        return {"prompt": prompt}
    given = {name: _loaded(prompt, name, value) for name, value in prompt.given.items()}
    return given if prompt.wordless or "prompt_embeds" in given else {"prompt": str(prompt), **given}


def prompt_hash(prompt: str) -> str:
    """What a tuned config keeps of a prompt that it was searched or measured on: 16 digits of its sha256.

    Case and spacing do not count: prompts that differ in nothing else make no two draws.
    """
    text = " ".join(prompt.casefold().split())
    if isinstance(prompt, Prompt) and prompt.given:
        text += json.dumps(prompt.digests, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_image(name: str) -> bool:
    """Whether an argument of this name is an image, which a path may stand for."""
    return "image" in name.split("_")


def _loaded(prompt: Prompt, name: str, value: Any) -> Any:
    if not (is_image(name) and isinstance(value, str)):
        return value
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(value) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidPrompt(
            f"{prompt.origin}, key '{name}': {value} cannot be read as an image ({reason:.120})"
        ) from None


def _digest(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        return f"{tuple(data.shape)} {data.dtype} {hashlib.sha256(data.double().numpy().tobytes()).hexdigest()[:16]}"
    if is_image(name) and isinstance(value, str):
        return hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]
    if hasattr(value, "tobytes"):  # a PIL image or an array
        shape = getattr(value, "size", None)
        return f"{shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, Mapping):
        return {str(key): _digest("", inner) for key, inner in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_digest(name, inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
