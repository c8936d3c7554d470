"""Cache policies and predictors: decisions over plain values, torch tensors only, no models.

Begin with `base`, the contract of a policy and of a predictor, `rules`, when a site is reused, and `vocabulary`, the
plain values they speak in.
`methods` holds the published methods, one file each; `predictors` what stands in for a skipped value; `schedule` the
explicit table that every static policy compiles to; `compose` and `wrappers` the policies that are made of others.
"""

from fastercache.policies.base import Assigned as Assigned
from fastercache.policies.base import Citation as Citation
from fastercache.policies.base import Config as Config
from fastercache.policies.base import Hold as Hold
from fastercache.policies.base import Now as Now
from fastercache.policies.base import Past as Past
from fastercache.policies.base import Policy as Policy
from fastercache.policies.base import Predictor as Predictor
from fastercache.policies.base import SitePolicy as SitePolicy
from fastercache.policies.compose import Compose as Compose
from fastercache.policies.errors import AttachError as AttachError
from fastercache.policies.errors import BranchUnknown as BranchUnknown
from fastercache.policies.errors import BudgetNotMet as BudgetNotMet
from fastercache.policies.errors import ClockError as ClockError
from fastercache.policies.errors import ConfigMismatch as ConfigMismatch
from fastercache.policies.errors import ConfigUnreadable as ConfigUnreadable
from fastercache.policies.errors import FasterCacheError as FasterCacheError
from fastercache.policies.errors import ForeignCall as ForeignCall
from fastercache.policies.errors import InvalidFamily as InvalidFamily
from fastercache.policies.errors import InvalidMetric as InvalidMetric
from fastercache.policies.errors import InvalidPolicy as InvalidPolicy
from fastercache.policies.errors import InvalidSignal as InvalidSignal
from fastercache.policies.errors import MeasurementError as MeasurementError
from fastercache.policies.errors import MissingDependency as MissingDependency
from fastercache.policies.errors import NoGuidance as NoGuidance
from fastercache.policies.errors import NoSiteMatched as NoSiteMatched
from fastercache.policies.errors import NotFinite as NotFinite
from fastercache.policies.errors import PipelineUnreadable as PipelineUnreadable
from fastercache.policies.errors import RecordingError as RecordingError
from fastercache.policies.errors import ScheduleMismatch as ScheduleMismatch
from fastercache.policies.errors import SiteConflict as SiteConflict
from fastercache.policies.errors import UnknownPolicy as UnknownPolicy
from fastercache.policies.files import names_file as names_file
from fastercache.policies.files import policy_from_file as policy_from_file
from fastercache.policies.measurements import Measure as Measure
from fastercache.policies.measurements import Measurements as Measurements
from fastercache.policies.methods import *  # noqa: F403
from fastercache.policies.predictors import *  # noqa: F403
from fastercache.policies.registry import AnyPolicy as AnyPolicy
from fastercache.policies.registry import AnyPredictor as AnyPredictor
from fastercache.policies.registry import dump as dump
from fastercache.policies.registry import known_policies as known_policies
from fastercache.policies.registry import load_policy as load_policy
from fastercache.policies.registry import load_predictor as load_predictor
from fastercache.policies.registry import policy_class as policy_class
from fastercache.policies.registry import register as register
from fastercache.policies.rules import Rule as Rule
from fastercache.policies.rules import StaticRule as StaticRule
from fastercache.policies.rules import WatchingRule as WatchingRule
from fastercache.policies.schedule import Code as Code
from fastercache.policies.schedule import Row as Row
from fastercache.policies.schedule import Schedule as Schedule
from fastercache.policies.schedule import Table as Table
from fastercache.policies.schedule import compile_policy as compile_policy
from fastercache.policies.signals import Signal as Signal
from fastercache.policies.signals import known_signals as known_signals
from fastercache.policies.signals import register_signal as register_signal
from fastercache.policies.signals import signal_called as signal_called
from fastercache.policies.vocabulary import COND as COND
from fastercache.policies.vocabulary import UNCOND as UNCOND
from fastercache.policies.vocabulary import Branch as Branch
from fastercache.policies.vocabulary import Kind as Kind
from fastercache.policies.vocabulary import Role as Role
from fastercache.policies.vocabulary import Run as Run
from fastercache.policies.vocabulary import Scope as Scope
from fastercache.policies.vocabulary import Site as Site
from fastercache.policies.vocabulary import Step as Step
from fastercache.policies.vocabulary import select as select
from fastercache.policies.wrappers import MaxConsecutive as MaxConsecutive
from fastercache.policies.wrappers import WarmUp as WarmUp
from fastercache.policies.wrappers import Window as Window
