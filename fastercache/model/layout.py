"""How values lie in tensors: a call's batch rows, a block's streams, packed tokens, the denoiser's output container."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastercache.model.families import Layout
from fastercache.policies.errors import AttachError

# Arguments whose leading axis is not the batch, even where the sizes happen to agree; but see `per_row`.
UNSLICED = frozenset(
    {"image_rotary_emb", "rotary_emb", "rotary_embedding", "freqs_cis", "freqs_cos", "freqs_sin", "img_ids", "txt_ids",
     "img_shapes", "text_rope_pos", "visual_rope_pos", "rope_interpolation_scale", "control_hidden_states_scale"}
)  # fmt: skip


def equal_parts(tensor: Tensor, parts: Sequence[int], of: int) -> Tensor:
    """Some of `of` equal parts along the leading axis, in the order given: a view where they lie side by side, else a
    copy."""
    size = tensor.shape[0] // of
    if list(parts) == list(range(parts[0], parts[0] + len(parts))):
        return tensor.narrow(0, parts[0] * size, size * len(parts))
    return torch.cat([tensor.narrow(0, part * size, size) for part in parts])


def take_rows(value: Any, lead: int | tuple[int, ...], parts: Sequence[int], of: int, tokens: int | None = None) -> Any:
    """The same nesting with only the rows of some of `of` equal parts along every leading axis of a size in `lead`.

    Inside a block there can be two: hidden states (B*F, ...) beside an embedding (B, ...). `tokens` is how many the
    call's main input (B, N, D) has, where that is not among the values as `hidden_states`.
    """
    leads = (lead,) if isinstance(lead, int) else lead
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] not in leads:
            return value
        return equal_parts(value, parts, of)
    if isinstance(value, (tuple, list)):
        return type(value)(take_rows(item, leads, parts, of, tokens) for item in value)
    if isinstance(value, dict):
        hidden = value.get("hidden_states")
        if isinstance(hidden, Tensor):
            tokens = tokens_of(hidden)
        return {
            k: v if k in UNSLICED and not per_row(v, leads, tokens) else take_rows(v, leads, parts, of, tokens)
            for k, v in value.items()
        }
    return value


def tokens_of(main: Tensor) -> int | None:
    """How many tokens a call's main input (B, N, D) has; None for one of another shape."""
    return main.shape[1] if main.ndim == 3 else None


def per_row(value: Any, leads: tuple[int, ...], tokens: int | None) -> bool:
    """Whether position embeddings are given for each row: (B, N, D) as in LTX, or with an axis for heads (B, 1, N, ...)
    as in PRX or (B, N, 1, ...) as in Kandinsky 5, not (N, D) or (N, heads, D)."""
    if isinstance(value, (tuple, list)):
        return bool(value) and all(per_row(item, leads, tokens) for item in value)
    if not isinstance(value, Tensor) or value.ndim < 3 or value.shape[0] not in leads:
        return False
    if value.ndim == 3:
        return value.shape[1] == tokens
    return tuple(value.shape[1:3]) in ((1, tokens), (tokens, 1))


def leading_tensor(args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "hidden_states") -> Tensor:
    """The main input of a call: the keyword `name`, `sample`, or the first tensor given."""
    for key in (name, "sample", "x"):
        found = kwargs.get(key)
        if isinstance(found, Tensor):
            return found
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise AttachError("a hooked module was called without any tensor, so its batch cannot be told")


def timestep_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """The timestep a denoiser call was given, of its first row; None where it was given none. Waits for the device.

    Where each token or frame has its own (B, N), conditioning ones have less: the largest is the step's.
    """
    value = kwargs.get("timestep", kwargs.get("timesteps"))
    if value is None:
        value = next((a for a in args[1:] if isinstance(a, Tensor) and a.ndim <= 1), None)
    if isinstance(value, Tensor):
        if not value.numel() or value.is_meta:
            return None
        return float(value.max() if value.ndim > 1 else value.flatten()[0])
    return float(value) if isinstance(value, (int, float)) else None


def flatten_output(output: Any) -> list[Tensor | None]:
    """The tensors of a module's output, depth first: itself, the items of nested tuples, a diffusers output's fields.

    What is no tensor stands as None, so that positions agree with `rebuild_output`.
    """
    if not isinstance(output, (Tensor, dict, tuple, list)):
        raise AttachError(
            f"a hooked module returned {type(output).__name__}; expected a tensor, a tuple or a model output"
        )
    return _leaves(output)


def _leaves(value: Any) -> list[Tensor | None]:
    if isinstance(value, (dict, tuple, list)):
        items = value.values() if isinstance(value, dict) else value
        return [leaf for item in items for leaf in _leaves(item)]
    return [value if isinstance(value, Tensor) else None]


def rebuild_output(template: Any, tensors: Sequence[Tensor | None]) -> Any:
    """The container of `template` with other tensors, in the order of `flatten_output`."""
    return _filled(template, iter(tensors))


def _filled(template: Any, tensors: Iterator[Tensor | None]) -> Any:
    if isinstance(template, dict):
        items = {key: _filled(value, tensors) for key, value in template.items()}
        return type(template)(**{key: value for key, value in items.items() if value is not None})
    if isinstance(template, (tuple, list)):
        return type(template)(_filled(value, tensors) for value in template)
    tensor = next(tensors)
    return tensor if tensor is not None or isinstance(template, Tensor) else template


def strip(output: Any) -> Any:
    """A container without its tensors, to remember its shape without holding memory."""
    if isinstance(output, Tensor):
        return output.new_empty(0)
    if isinstance(output, dict):
        return type(output)(**{k: strip(v) for k, v in output.items()})
    if isinstance(output, (tuple, list)):
        return type(output)(strip(v) for v in output)
    return output


def _continues(stream: Tensor, output: Tensor) -> bool:
    """Whether an output may be a stream that went through a block; a text of one row may serve many images."""
    return stream.shape[1:] == output.shape[1:] and stream.shape[0] in (output.shape[0], 1)


@dataclass(frozen=True)
class BlockIO:
    """Where a block's streams come in: parameter names with their positions, the hidden states first, texts last."""

    streams: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, block: nn.Module) -> BlockIO:
        """Read off the block's forward: `hidden_states` or the first parameter, then others' and encoders' states."""
        names = [
            p.name
            for p in inspect.signature(type(block).forward).parameters.values()
            if p.name != "self" and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if not names:
            raise AttachError(f"{type(block).__name__}.forward names no parameters, so its streams cannot be told")
        main = "hidden_states" if "hidden_states" in names else names[0]
        further = [n for n in names if n.endswith("_hidden_states") and n != main]
        streams = [main, *sorted(further, key=lambda n: "encoder_" in n)]
        return cls(tuple((name, names.index(name)) for name in streams))

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor | None]:
        """The stream tensors of a call; None for a stream that was not given."""
        found = []
        for name, position in self.streams:
            value = kwargs.get(name, args[position] if position < len(args) else None)
            found.append(value if isinstance(value, Tensor) else None)
        return found

    def match(self, outputs: Sequence[Tensor | None], inputs: Sequence[Tensor | None], text_first: bool) -> list[int]:
        """For each output the index of the input stream it continues; -1 for None.

        Shapes decide; where both streams have one shape, `text_first` does (the order is the family's).
        """
        taken: set[int] = set()
        result = []
        tensors = [o for o in outputs if o is not None]
        for output in outputs:
            if output is None:
                result.append(-1)
                continue
            fits = [
                i
                for i, stream in enumerate(inputs)
                if i not in taken and stream is not None and _continues(stream, output)
            ]
            if not fits:
                raise AttachError(
                    f"a block returned a tensor of shape {tuple(output.shape)}, which none of its inputs "
                    f"{[tuple(i.shape) for i in inputs if i is not None]} has: its residual is undefined"
                )
            chosen = fits[-1] if text_first and len(fits) > 1 and len(tensors) > 1 else fits[0]
            taken.add(chosen)
            result.append(chosen)
        return result


def canonical(x: Tensor, layout: Layout, batch: int) -> Tensor:
    """Hidden states of a `tokens` layout (B*N, F, D) as `frames` (B*F, N, D); other layouts unchanged."""
    if layout != "tokens":
        return x
    _, frames, dim = x.shape
    return x.reshape(batch, -1, frames, dim).permute(0, 2, 1, 3).reshape(batch * frames, -1, dim)


def from_canonical(x: Tensor, layout: Layout, batch: int) -> Tensor:
    """The inverse of `canonical`."""
    if layout != "tokens":
        return x
    _, tokens, dim = x.shape
    return x.reshape(batch, -1, tokens, dim).permute(0, 2, 1, 3).reshape(batch * tokens, -1, dim)


def joined(streams: Sequence[Tensor | None], layout: Layout = "joined") -> list[Tensor | None]:
    """The image and text streams (B, N, D) and (B, T, D) as one stream (B, T + N, D), the text first or last."""
    tensors = [s for s in streams if s is not None]
    if len(tensors) < 2:
        return list(streams)
    image, text = tensors
    both = [text.expand(image.shape[0], -1, -1), image]
    return [torch.cat(both if layout == "joined" else both[::-1], dim=1)]
