"""Which guidance branches does a denoiser call compute, and in which row order?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastercache.model.families import ORDERS, Family, Guidance
from fastercache.model.hooks import MethodTap
from fastercache.policies.errors import BranchUnknown
from fastercache.policies.vocabulary import COND, UNCOND, Branch

DEFAULT_ORDER: dict[Guidance, tuple[Branch, ...]] = {
    "batched": (UNCOND, COND),
    "separate": (COND, UNCOND),
    "none": (COND,),
}
"""Branches in the order of rows or calls, as most of diffusers has it, for loops that no family describes."""

PERTURBED: Branch = "perturbed"
"""The branch of perturbed-attention guidance, whose rows follow the conditional ones in diffusers' PAG pipelines."""


class ContextTap(MethodTap):
    """Follows `denoiser.cache_context(name)`, by which newer pipelines tell the branch of a call."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser, "cache_context", lambda result: None)
        self.current: str | None = None

    @contextmanager
    def __call__(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        before, self.current = self.current, str(kwargs["name"] if "name" in kwargs else args[0])
        try:
            with self.original(*args, **kwargs) as value:
                yield value
        finally:
            self.current = before


def _pair_of(result: Any) -> tuple[Tensor, Tensor] | None:
    """Positive and negative embeddings in what `encode_prompt` returned, in diffusers' order, if they differ."""
    tensors = [t for t in result if isinstance(t, Tensor)] if isinstance(result, (tuple, list)) else []
    if not tensors:
        return None
    positive = tensors[0]
    negative = next((t for t in tensors[1:] if t.shape == positive.shape and t.dtype == positive.dtype), None)
    return None if negative is None or torch.equal(positive, negative) else (positive, negative)


def _order_of(texts: tuple[Tensor, Tensor], values: Sequence[Any], parts: int) -> tuple[Branch, ...] | None:
    """The branches whose texts are the equal parts of one of these values; None where none holds them."""
    for value in values:
        if not isinstance(value, Tensor) or value.shape[1:] != texts[0].shape[1:]:
            continue
        if value.shape[0] != parts * texts[0].shape[0]:
            continue
        found = [
            next((b for b, text in zip((COND, UNCOND), texts, strict=True) if torch.equal(part, text.to(part))), None)
            for part in value.chunk(parts)
        ]
        if None not in found:
            return tuple(b for b in found if b is not None)
    return None


class BranchFinder:
    """Names the branches of each call of one denoiser.

    Raises:
        BranchUnknown: where nothing tells; the message says what to pass to `attach`.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        pipe: Any | None,
        family: Family | None,
        guidance: Guidance | None,
        branches: Sequence[Branch] | None = None,
    ) -> None:
        name = type(denoiser).__name__
        if guidance is not None and guidance not in tuple(DEFAULT_ORDER):
            raise BranchUnknown(f'guidance must be "batched", "separate" or "none", found {guidance!r:.40}')
        if family is None and guidance is None:
            raise BranchUnknown(
                f"{name} is in no known family, so its guidance style is unknown: "
                'pass guidance="batched", "separate" or "none" to attach()'
            )
        self.name, self.pipe, self.family = name, pipe, family
        self.guidance: Guidance = guidance or (family.guidance if family else "none")
        if pipe is not None and guidance is None and family is not None and family.true_cfg:
            self.guidance = "separate"  # each run shows whether it is so
        if branches is not None:
            self.order = self._given(branches)
        elif family is not None and family.guidance == self.guidance:
            self.order = ORDERS.get(type(pipe).__name__, family.order)
        else:
            self.order = DEFAULT_ORDER[self.guidance]
        self.contexts = ContextTap(denoiser) if hasattr(denoiser, "cache_context") else None
        self.explicit: tuple[Branch, ...] = ()  # set by Session.branch for loops of the user's own
        self._latent_batch: int | None = None
        self._encoded = 0  # prompts encoded since the pipeline call began
        self._texts: tuple[Tensor, Tensor] | None = None  # their embeddings, positive and negative
        self.unsure = ""
        """Why it is not known which branch is which: nothing described this class and nothing told in this run."""
        heard = {
            "prepare_latents": self._on_latents,
            "check_inputs": self._on_inputs,
            "encode_prompt": self._on_encoded,
        }
        self._taps = [MethodTap(pipe, method, after) for method, after in heard.items() if hasattr(pipe, method)]
        self._given_by_user = branches is not None
        self.groups: tuple[tuple[Branch, ...], ...] = ()
        """The branches of each denoiser call of a step, in row order; known once a run has begun."""
        self.run_order: tuple[Branch, ...] = self.order
        """The branches of the newest run, in the order of a batched call's rows, or of a step's calls."""
        self._run_batch = 0
        self._calls = 0  # calls in the current step
        self._step = -1
        self._timestep: float | None = None  # of the call before

    @staticmethod
    def _given(branches: Sequence[Branch]) -> tuple[Branch, ...]:
        if COND not in branches or len(set(branches)) < len(branches):
            raise BranchUnknown(f"branches must be different names with '{COND}' among them, found {list(branches)}")
        return tuple(branches)

    def remove(self) -> None:
        if self.contexts is not None:
            self.contexts.remove()
        for tap in self._taps:
            tap.remove()

    @property
    def context(self) -> str | None:
        """The cache context the pipeline has entered, if it uses them."""
        return self.contexts.current if self.contexts is not None else None

    def _on_latents(self, result: Any) -> None:
        first = result[0] if isinstance(result, (tuple, list)) else result
        self._latent_batch = first.shape[0] if isinstance(first, Tensor) else None

    def _on_inputs(self, result: Any) -> None:
        self._encoded, self._texts = 0, None

    def _on_encoded(self, result: Any) -> None:
        self._encoded += 1
        if self._assumed:
            self._texts = _pair_of(result)

    def begin(self, batch: int, kwargs: dict[str, Any]) -> tuple[Branch, ...]:
        """The branches of a run whose first call has `batch` rows and these keywords, the conditional one first."""
        self._run_batch = batch
        self._step, self._calls, self._timestep = -1, 0, None
        order = self.order if self._guided(batch, kwargs) else (COND,)
        if self.coupled:
            order = (*order, PERTURBED)
        self.run_order = order
        first = self.explicit or (order if self.guidance == "batched" else order[:1])
        alone = [b for b in order if b not in first]
        self.groups = (first, *((b,) for b in (*alone, *self._passes())))
        samples = self._latent_batch
        if self.guidance == "batched" and samples and batch % samples == 0 and batch // samples != len(order):
            raise BranchUnknown(
                f"{self.name} is called with {batch} rows for {samples} samples, that is {batch // samples} branches, "
                f"expected {len(order)} ({', '.join(order)}): pass branches=(...) to attach(), in the order of the rows"
            )
        if self.guidance == "batched" and batch % len(order):
            raise BranchUnknown(
                f"{self.name} is called with {batch} rows, which is no {len(order)} equal parts ({', '.join(order)}): "
                'pass guidance="none" to attach() where the loop has no guidance'
            )
        return (COND, *(b for group in self.groups for b in group if b != COND))

    @property
    def _assumed(self) -> bool:
        """Whether the order of branches is only the usual one: of a class in no family, and not given."""
        return self.family is None and not self._given_by_user and self.guidance != "none"

    def check_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compare the texts of a run's first call with those that the pipeline encoded, where the order is assumed.

        Raises:
            BranchUnknown: if they stand in another order.
        """
        self.unsure = ""
        texts, self._texts = self._texts, None
        if not self._assumed or len(self.run_order) < 2 or self.explicit or self.context is not None:
            return
        order = self.run_order if self.guidance == "batched" else self.run_order[:1]
        told = None if texts is None else _order_of(texts, (*args, *kwargs.values()), len(order))
        ask = f"{self.name} is in no known family: pass branches=(...) to attach(), in the order of the rows or calls"
        if told is None:
            self.unsure = f"nothing tells which branch of a call is the conditional one, and {ask}"
        elif told != order:
            raise BranchUnknown(
                f"the call's texts are in the order ({', '.join(told)}), not ({', '.join(order)}); {ask}"
            )

    @property
    def coupled(self) -> bool:
        """Whether all rows of a call must be computed together: PAG's attention tells its branches by their place."""
        return bool(getattr(self.pipe, "do_perturbed_attention_guidance", False)) and not self._given_by_user

    def _passes(self) -> tuple[Branch, ...]:
        """The branches that the pipeline will call by themselves after the batched call of each step."""
        passes = self.family.passes.values() if self.family is not None else ()
        return tuple(branch for branch, switch in passes if getattr(self.pipe, switch, False))

    def _counts_alone(self) -> bool:
        """Whether neither the scheduler, a context nor the user tells the branch of a call."""
        return self.pipe is None and self.guidance != "batched" and not self.explicit and self.context is None

    def _guided(self, batch: int, kwargs: dict[str, Any]) -> bool:
        """Whether the run about to begin has guidance, from what its first call and its pipeline show."""
        if len(self.order) == 1:
            return False
        labels = kwargs.get("class_labels")
        null = self.family.null_class if self.family is not None and self.guidance == "batched" else None
        if null is not None and isinstance(labels, Tensor):
            return bool((labels == null).any())
        if self.pipe is None:
            return True
        if self.guidance == "batched" and self._latent_batch:
            return batch >= (len(self.order) + self.coupled) * self._latent_batch
        on = getattr(self.pipe, "do_classifier_free_guidance", None)
        if on is not None:
            return bool(on)
        # Pipelines without that property (Flux, QwenImage, HunyuanVideo) encode the negative prompt in a second call.
        return self._encoded != 1

    @property
    def cond_last(self) -> bool:
        """Whether another branch's call comes before the conditional one of the same step."""
        return self.guidance == "separate" and len(self.run_order) > 1 and self.run_order[0] != COND

    def of(self, step: int, batch: int, timestep: Callable[[], float | None]) -> tuple[Branch, ...]:
        """The branches of this call, in row order. Counts calls within a step: ask once per call.

        In a loop of the user's own no scheduler ends a step. There the calls are counted round and round, and a
        timestep that changes before every branch was called means that guidance is off for the rest of the step.
        """
        if self._counts_alone():
            now = timestep()
            fresh = self._calls >= len(self.run_order) or now != self._timestep
            self._calls, self._timestep = 1 if fresh else self._calls + 1, now
        else:
            self._calls = self._calls + 1 if step == self._step else 1
        self._step = step
        order = self.run_order
        if self.explicit:
            unknown = [b for b in self.explicit if b not in order]
            if unknown or batch % len(self.explicit):
                raise BranchUnknown(
                    f"session.branch({', '.join(map(repr, self.explicit))}) around a call of {batch} rows: expected "
                    f"equal parts for branches of this run ({', '.join(order)}); pass others to attach(branches=...)"
                )
            return self.explicit
        if self.context is not None and self.family is not None and self.context in self.family.passes:
            return self._of_pass(self.family.passes[self.context][0])
        if self.guidance == "batched":
            return self._of_rows(batch)
        context = self.context
        if context is not None:
            named = self.family.contexts.get(context, context) if self.family else context
            if named in order:
                return (named,)
            raise BranchUnknown(
                f"the pipeline calls {self.name} in the cache context '{context}', which names no branch of "
                f"{', '.join(order)}"
            )
        if self._calls > len(order):
            raise BranchUnknown(
                f"{self.name} was called {self._calls} times in step {step}, expected {len(order)} "
                f"({', '.join(order)}): name the branch of each call with session.branch(...)"
            )
        return (order[self._calls - 1],)

    def _of_pass(self, branch: Branch) -> tuple[Branch, ...]:
        if (branch,) not in self.groups:
            raise BranchUnknown(f"{self.name} is called for the branch '{branch}', which was off when the run began")
        return (branch,)

    def _of_rows(self, batch: int) -> tuple[Branch, ...]:
        """The branches of a batched call, told by its rows."""
        order = self.run_order
        if self._calls > 1 and self.pipe is not None:
            raise BranchUnknown(
                f"{self.name} was called {self._calls} times in one step of batched guidance, expected once: an extra "
                "pass (skip-layer or perturbed guidance) belongs to no branch of this run, so switch it off"
            )
        if batch == self._run_batch:
            return order
        if batch * len(order) == self._run_batch:  # guidance was switched off part-way
            return (COND,)
        raise BranchUnknown(
            f"{self.name} was called with {batch} rows in a run that began with {self._run_batch} "
            f"({', '.join(order)}): guidance cannot be switched on in the middle of a run"
        )
