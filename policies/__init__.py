"""Cache policies and predictors: decisions over plain values, torch tensors only, no models."""

from policies.adacache import CODEBOOKS, AdaCache, BWCache
from policies.base import Citation, Config, Hold, Past, Policy, Predictor
from policies.cfg_cache import CFGCache
from policies.compose import Compose
from policies.deepcache import DeepCache
from policies.delta_dit import DeltaDiT
from policies.dicache import DiCache
from policies.dynamic import Dynamic
from policies.dynamic_reuse import DynamicReuse
from policies.easycache import EasyCache
from policies.errors import (
    AttachError,
    BranchUnknown,
    BudgetNotMet,
    ClockError,
    ConfigMismatch,
    ConfigUnreadable,
    FasterCacheError,
    InvalidPolicy,
    MeasurementError,
    MissingDependency,
    NoSiteMatched,
    NotFinite,
    PipelineUnreadable,
    RecordingError,
    ScheduleMismatch,
    SiteConflict,
    UnknownPolicy,
)
from policies.ertacache import ERTACache, Rectified
from policies.faster_cache import PRESETS, FasterCache
from policies.files import names_file, policy_from_file
from policies.first_block_cache import DualBlockCache, FirstBlockCache
from policies.fora import FORA
from policies.forecasts import Aligned, AverageVelocity, FoCaForecast, Hermite, Relative, Zero
from policies.frequency import GuidanceDelta
from policies.guidance import AdaptiveGuidance, BranchReuse, GuidanceInterval, GuidanceReuse
from policies.magcache import MagCache
from policies.meancache import PLANS, MeanCache
from policies.predictors import Difference, Linear, Ramp, Taylor
from policies.pyramid_attention_broadcast import PyramidAttentionBroadcast
from policies.registry import dump, load_policy, load_predictor, policy_class, register
from policies.registry import policies as known_policies
from policies.schedule import Code, Row, Schedule, Table, compile_policy
from policies.seacache import SeaCache
from policies.smoothcache import SmoothCache
from policies.static_interval import NoCache, StaticInterval
from policies.taylorseer import FoCa, HiCache, TaylorSeer
from policies.teacache import COEFFICIENTS, TeaCache
from policies.tgate import TGate
from policies.vocabulary import COND, UNCOND, Branch, Kind, Role, Run, Scope, Signal, Site, Step, select
from policies.wrappers import MaxConsecutive, WarmUp, Window

for _predictor in (
    Hold, Difference, Linear, Taylor, GuidanceDelta, Hermite, FoCaForecast, AverageVelocity, Zero, Relative, Aligned,
    Rectified,
):  # fmt: skip
    register(_predictor)

__all__ = [
    "CODEBOOKS",
    "COEFFICIENTS",
    "COND",
    "FORA",
    "PLANS",
    "PRESETS",
    "UNCOND",
    "AdaCache",
    "AdaptiveGuidance",
    "Aligned",
    "AttachError",
    "AverageVelocity",
    "BWCache",
    "Branch",
    "BranchReuse",
    "BranchUnknown",
    "BudgetNotMet",
    "CFGCache",
    "Citation",
    "ClockError",
    "Code",
    "Compose",
    "Config",
    "ConfigMismatch",
    "ConfigUnreadable",
    "DeepCache",
    "DeltaDiT",
    "DiCache",
    "Difference",
    "DualBlockCache",
    "Dynamic",
    "DynamicReuse",
    "ERTACache",
    "EasyCache",
    "FasterCache",
    "FasterCacheError",
    "FirstBlockCache",
    "FoCa",
    "FoCaForecast",
    "GuidanceDelta",
    "GuidanceInterval",
    "GuidanceReuse",
    "Hermite",
    "HiCache",
    "Hold",
    "InvalidPolicy",
    "Kind",
    "Linear",
    "MagCache",
    "MaxConsecutive",
    "MeanCache",
    "MeasurementError",
    "MissingDependency",
    "NoCache",
    "NoSiteMatched",
    "NotFinite",
    "Past",
    "PipelineUnreadable",
    "Policy",
    "Predictor",
    "PyramidAttentionBroadcast",
    "Ramp",
    "RecordingError",
    "Rectified",
    "Relative",
    "Role",
    "Row",
    "Run",
    "Schedule",
    "ScheduleMismatch",
    "Scope",
    "SeaCache",
    "Signal",
    "Site",
    "SiteConflict",
    "SmoothCache",
    "StaticInterval",
    "Step",
    "TGate",
    "Table",
    "Taylor",
    "TaylorSeer",
    "TeaCache",
    "UnknownPolicy",
    "WarmUp",
    "Window",
    "Zero",
    "compile_policy",
    "dump",
    "known_policies",
    "load_policy",
    "load_predictor",
    "names_file",
    "policy_class",
    "policy_from_file",
    "register",
    "select",
]
