"""A schedule planned from one recording: which steps to compute, what stands in for the others, and at what loss.

Begin with `damage`, what skipping a stretch of steps costs, and `paths`, the cheapest set of computed steps for every
amount of compute. `lockstep` runs all search prompts side by side, `fitting` finds the weights on those cached runs,
`front` holds what came out. docs/planning.md has the mathematics.
"""
