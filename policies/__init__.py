"""Cache policies and predictors: decisions over plain values, torch tensors only, no models."""

from policies.base import Citation, Config, Past, Policy, Predictor
from policies.cfg_cache import CFGCache
from policies.compose import Compose
from policies.dynamic_reuse import DynamicReuse
from policies.errors import (
    AttachError,
    BranchUnknown,
    BudgetNotMet,
    ClockError,
    ConfigMismatch,
    ConfigUnreadable,
    FasterCacheError,
    InvalidPolicy,
    MissingDependency,
    NoSiteMatched,
    NotFinite,
    PipelineUnreadable,
    ScheduleMismatch,
    SiteConflict,
    UnknownPolicy,
)
from policies.faster_cache import PRESETS, FasterCache
from policies.frequency import GuidanceDelta
from policies.predictors import Difference, Hold, Linear, Ramp, Taylor
from policies.registry import dump, load_policy, load_predictor, policy_class, register
from policies.registry import policies as known_policies
from policies.schedule import Code, Row, Schedule, Table, compile_policy
from policies.static_interval import NoCache, StaticInterval
from policies.vocabulary import COND, UNCOND, Branch, Kind, Role, Run, Signal, Site, Step, select
from policies.wrappers import MaxConsecutive, WarmUp, Window

for _predictor in (Hold, Difference, Linear, Taylor, GuidanceDelta):
    register(_predictor)

__all__ = [
    "COND",
    "PRESETS",
    "UNCOND",
    "AttachError",
    "Branch",
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
    "Difference",
    "DynamicReuse",
    "FasterCache",
    "FasterCacheError",
    "GuidanceDelta",
    "Hold",
    "InvalidPolicy",
    "Kind",
    "Linear",
    "MaxConsecutive",
    "MissingDependency",
    "NoCache",
    "NoSiteMatched",
    "NotFinite",
    "Past",
    "PipelineUnreadable",
    "Policy",
    "Predictor",
    "Ramp",
    "Role",
    "Row",
    "Run",
    "Schedule",
    "ScheduleMismatch",
    "Signal",
    "Site",
    "SiteConflict",
    "StaticInterval",
    "Step",
    "Table",
    "Taylor",
    "UnknownPolicy",
    "WarmUp",
    "Window",
    "compile_policy",
    "dump",
    "known_policies",
    "load_policy",
    "load_predictor",
    "policy_class",
    "register",
    "select",
]
