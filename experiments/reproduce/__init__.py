"""The findings of the FasterCache paper on a reference model: `python -m fastercache.experiments.reproduce MODEL`."""
