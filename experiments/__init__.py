"""Everything that runs the toolkit end to end: reference models, demo, benchmarks and the command line."""
