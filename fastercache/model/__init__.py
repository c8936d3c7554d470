"""What a denoiser is: its family, its sites and blocks, how its branches and latents are laid out, what a call costs.

Begin with `families`, the table of what differs between models, and `finder`, which finds the sites. `hooks` is the one
place that touches a module.
"""
