"""What happens during a run: the clock, a denoiser call, the decision and value at each site, the record of it.

Begin with `plan`, what a policy does in a run as plain data, then `denoiser`, which runs one call, and `units`, what
all sites have in common. `store` holds the cached values, `rows` cuts and joins tensors by branch, `writer` writes the
trace, and `trace` is what remains of a run.
"""
