"""The runtime: attach a policy to a diffusers pipeline or a bare denoiser. Re-exports every policy.

>>> import fastercache as fc
>>> with fc.attach(pipe, fc.FasterCache()) as session:                                     # doctest: +SKIP
...     video = pipe("a red seven moving left").frames
>>> print(session.summary())                                                               # doctest: +SKIP
"""

from fastercache.attach import attach, find_sites
from fastercache.session import Session, Watch
from fastercache.trace import Observation, Trace
from fastercache.tuned import TunedConfig, load
from policies import *  # noqa: F403
from policies import __all__ as _policies

__all__ = [*_policies, "Observation", "Session", "Trace", "TunedConfig", "Watch", "attach", "find_sites", "load"]
