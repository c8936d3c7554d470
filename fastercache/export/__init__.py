"""A tuned config in the form that other software reads.

Begin with `recipe`: what a policy does at each step, as plain numbers. `python` writes it as one file that needs torch
only, `cache_dit` as settings of cache-dit and SGLang, `diffusers` as a snippet with diffusers' own caches, `hub` as a
folder for the Hugging Face hub. Each returns text; what a target cannot express is said in `Exported.lost`.
"""

from fastercache.export.recipe import Exported as Exported
from fastercache.export.recipe import NotExportable as NotExportable
from fastercache.export.targets import FILES as FILES
from fastercache.export.targets import TARGETS as TARGETS
from fastercache.export.targets import exported as exported
