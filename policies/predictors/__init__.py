"""What stands in for a skipped value.

Begin with `history`: a prediction that is linear in the past is a list of weights on the values kept.
"""

from fastercache.policies.predictors.adams_bashforth import AdamsBashforth as AdamsBashforth
from fastercache.policies.predictors.chebyshev import Chebyshev as Chebyshev
from fastercache.policies.predictors.exponential import Exponential as Exponential
from fastercache.policies.predictors.fitted import Fitted as Fitted
from fastercache.policies.predictors.fitted import Stretch as Stretch
from fastercache.policies.predictors.forecasts import Aligned as Aligned
from fastercache.policies.predictors.forecasts import AverageVelocity as AverageVelocity
from fastercache.policies.predictors.forecasts import FoCaForecast as FoCaForecast
from fastercache.policies.predictors.forecasts import Hermite as Hermite
from fastercache.policies.predictors.forecasts import Relative as Relative
from fastercache.policies.predictors.forecasts import Zero as Zero
from fastercache.policies.predictors.frequency import GuidanceDelta as GuidanceDelta
from fastercache.policies.predictors.history import Difference as Difference
from fastercache.policies.predictors.history import Linear as Linear
from fastercache.policies.predictors.history import Ramp as Ramp
from fastercache.policies.predictors.history import Taylor as Taylor
