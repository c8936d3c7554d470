"""The polynomial through the last k computed values [AB-Cache, arXiv 2504.10540]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fastercache.policies.base import Now, Past, Predictor
from fastercache.policies.predictors.history import combination
from fastercache.policies.registry import register


@register
class AdamsBashforth(Predictor):
    """The polynomial of degree k - 1 through the last k computed values, at their true distances [2504.10540].

        F(t) = sum_i F_{s_i} prod_{j != i} (t - s_j) / (s_i - s_j)

    One step after k neighbouring steps these are AB-Cache's binomial weights, sum_i (-1)^{i+1} C(k, i) F_{t-i}: 2, -1
    for k = 2 and 3, -3, 1 for k = 3. Its error is O(h^k). With fewer than k values known the degree is lower.
    """

    name: ClassVar[str] = "adams_bashforth"
    order: Annotated[int, Field(ge=1, le=5)] = Field(
        default=3, description="how many computed values are combined (k in the paper); 1 holds the value"
    )

    @property
    def depth(self) -> int:
        return self.order

    def predict(self, past: Sequence[Past], now: Now) -> Tensor:
        steps = [entry.step.index for entry in past[-self.order :]]
        t = now.step.index
        return combination(past, [math.prod((t - o) / (s - o) for o in steps if o != s) for s in steps])
