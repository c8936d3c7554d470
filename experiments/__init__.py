"""Everything that runs the toolkit end to end.

`cli` is the command line: `commands` parse, `jobs` do the work, `pictures` draw what came out. `bench` compares
methods, `reference` holds the trained reference models.
"""

from fastercache.extras import need

need("lab", "fastercache.experiments")
