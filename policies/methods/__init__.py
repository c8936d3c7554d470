"""The published methods, one file each: a new one is a file here and its line below."""

from fastercache.policies.methods.ab_cache import ABCache as ABCache
from fastercache.policies.methods.adacache import CODEBOOKS as CODEBOOKS
from fastercache.policies.methods.adacache import AdaCache as AdaCache
from fastercache.policies.methods.adacache import BWCache as BWCache
from fastercache.policies.methods.cfg_cache import CFGCache as CFGCache
from fastercache.policies.methods.deepcache import DeepCache as DeepCache
from fastercache.policies.methods.delta_dit import DeltaDiT as DeltaDiT
from fastercache.policies.methods.dicache import DiCache as DiCache
from fastercache.policies.methods.dmd import DMDCache as DMDCache
from fastercache.policies.methods.dynamic import Dynamic as Dynamic
from fastercache.policies.methods.dynamic_reuse import DynamicReuse as DynamicReuse
from fastercache.policies.methods.easycache import EasyCache as EasyCache
from fastercache.policies.methods.ertacache import ERTACache as ERTACache
from fastercache.policies.methods.ertacache import Rectified as Rectified
from fastercache.policies.methods.faster_cache import PRESETS as PRESETS
from fastercache.policies.methods.faster_cache import FasterCache as FasterCache
from fastercache.policies.methods.first_block_cache import DualBlockCache as DualBlockCache
from fastercache.policies.methods.first_block_cache import FirstBlockCache as FirstBlockCache
from fastercache.policies.methods.fora import FORA as FORA
from fastercache.policies.methods.guidance import AdaptiveGuidance as AdaptiveGuidance
from fastercache.policies.methods.guidance import BranchReuse as BranchReuse
from fastercache.policies.methods.guidance import GuidanceInterval as GuidanceInterval
from fastercache.policies.methods.guidance import GuidanceReuse as GuidanceReuse
from fastercache.policies.methods.magcache import MagCache as MagCache
from fastercache.policies.methods.meancache import PLANS as PLANS
from fastercache.policies.methods.meancache import MeanCache as MeanCache
from fastercache.policies.methods.planned import Planned as Planned
from fastercache.policies.methods.pyramid_attention_broadcast import (
    PyramidAttentionBroadcast as PyramidAttentionBroadcast,
)
from fastercache.policies.methods.seacache import SeaCache as SeaCache
from fastercache.policies.methods.smoothcache import SmoothCache as SmoothCache
from fastercache.policies.methods.spectrum import Spectrum as Spectrum
from fastercache.policies.methods.static_interval import NoCache as NoCache
from fastercache.policies.methods.static_interval import StaticInterval as StaticInterval
from fastercache.policies.methods.taylorseer import FoCa as FoCa
from fastercache.policies.methods.taylorseer import HiCache as HiCache
from fastercache.policies.methods.taylorseer import TaylorSeer as TaylorSeer
from fastercache.policies.methods.teacache import COEFFICIENTS as COEFFICIENTS
from fastercache.policies.methods.teacache import TeaCache as TeaCache
from fastercache.policies.methods.tgate import TGate as TGate
