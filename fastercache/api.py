"""What `import fastercache as fc` offers: the runtime's public names, and every policy and predictor."""

from fastercache.attachment import attach as attach
from fastercache.attachment import detach as detach
from fastercache.attachment import find_sites as find_sites
from fastercache.dial import Dial as Dial
from fastercache.model.families import Family as Family
from fastercache.model.families import register_family as register_family
from fastercache.picking import load as load
from fastercache.policies import *  # noqa: F403
from fastercache.run.trace import Observation as Observation
from fastercache.run.trace import Trace as Trace
from fastercache.session import Session as Session
from fastercache.session import Watch as Watch
from fastercache.tuned import TunedConfig as TunedConfig
