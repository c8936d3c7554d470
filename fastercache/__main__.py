"""`python -m fastercache`: the command line."""

from fastercache.experiments.cli import main

main()
