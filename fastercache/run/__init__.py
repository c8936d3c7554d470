"""What happens during a run: the clock, a denoiser call, the decision and value at each site, the record of it.

Begin with `denoiser`, which runs one call, and `units`, what all sites have in common. `store` holds the cached values,
`trace` is what remains of a run.
"""
