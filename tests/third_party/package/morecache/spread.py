"""A signal: one number a row."""

from torch import Tensor

import fastercache as fc


@fc.register_signal("spread", of=fc.Signal.INPUT)
def spread(x: Tensor) -> Tensor:
    """The standard deviation of the denoiser's input, (rows, ...) -> (rows, 1)."""
    return x.flatten(1).float().std(1, keepdim=True)
