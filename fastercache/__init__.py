"""Cache policies for diffusion models: see what repeats, search the schedule that exploits it, ship it as a file.

>>> import fastercache as fc
>>> with fc.attach(pipe, fc.FasterCache()) as session:                                     # doctest: +SKIP
...     video = pipe("a red seven moving left").frames
>>> print(session.summary())                                                               # doctest: +SKIP

The runtime stands directly in here: `attach` is the way in, `session` what it returns, `tuned` the exported file.
`model` knows what a denoiser is, `run` what happens in a call. `policies`, `analysis`, `tuner` and `experiments` are
rooms of their own: `from fastercache.analysis import record`, `from fastercache.tuner import tune`.

The names of `fastercache.api` are loaded when first used, so that the import itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastercache.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'fastercache' has no attribute '{name}'")
    api = import_module("fastercache.api")
    public = [known for known in vars(api) if not known.startswith("_")]
    if name == "__all__":
        return public
    if name not in public:
        raise AttributeError(f"module 'fastercache' has no attribute '{name}'")
    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
