"""Search the cheapest cache policy of one model within a quality budget, and ship it as a tuned config.

>>> study = tune(pipe, prompts, budget="psnr>=30", held_out=others)                        # doctest: +SKIP
>>> export(study, held_out=study.verify()).save("tuned.json")                              # doctest: +SKIP
"""

from fastercache.extras import need

need("lab", "fastercache.tuner")

from fastercache.bounds import InvalidBudget
from fastercache.tuner.budget import Budget, Term
from fastercache.tuner.certify import certificate, clopper_pearson, fixed_sequence, hoeffding_bentkus, prompts_needed
from fastercache.tuner.entry import default_seeds, tune
from fastercache.tuner.evaluate import Evaluation, Evaluator
from fastercache.tuner.export import export
from fastercache.tuner.fields import Parameter
from fastercache.tuner.joint import JointSpace
from fastercache.tuner.record import Outcome, Record
from fastercache.tuner.seconds import Seconds
from fastercache.tuner.setting import Case, References, Setting, run
from fastercache.tuner.simulate import CostModel, Forecast
from fastercache.tuner.space import Encoded, SearchSpace, Space
from fastercache.tuner.study import Study

__all__ = [
    "Budget",
    "Case",
    "CostModel",
    "Encoded",
    "Evaluation",
    "Evaluator",
    "Forecast",
    "InvalidBudget",
    "JointSpace",
    "Outcome",
    "Parameter",
    "Record",
    "References",
    "SearchSpace",
    "Seconds",
    "Setting",
    "Space",
    "Study",
    "Term",
    "certificate",
    "clopper_pearson",
    "default_seeds",
    "export",
    "fixed_sequence",
    "hoeffding_bentkus",
    "prompts_needed",
    "run",
    "tune",
]
