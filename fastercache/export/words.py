"""What a tuned config is, in a few lines that every export begins with."""

from __future__ import annotations

from fastercache.policies.wording import counted
from fastercache.tuned import Measured, TunedConfig


def heading(config: TunedConfig) -> str:
    """The model, the run and the figures, a line each, without a mark of comment."""
    lines = [
        f"A cache schedule ({config.policy.name}) for {made_for(config)}.",
        *figures(config),
        f"Made with fastercache {config.packages.get('fastercache', '')}".rstrip() + ".",
    ]
    return "\n".join(lines)


def made_for(config: TunedConfig) -> str:
    """`LattePipeline, 50 steps of DDIMScheduler, batched guidance of scale 4`."""
    scheduler = f" of {config.scheduler.kind}" if config.scheduler is not None else ""
    scale = f" of scale {config.guidance_scale:g}" if config.guidance_scale is not None else ""
    guidance = "no guidance" if config.guidance == "none" else f"{config.guidance} guidance{scale}"
    target = config.model.pipeline or config.model.denoiser.kind
    return f"{target}, {config.steps} steps{scheduler}, {guidance}"


def promises(config: TunedConfig) -> list[str]:
    """The budget, and the certificate that it is kept, a line each."""
    lines = [] if config.budget is None else [f"Budget: {config.budget}."]
    return lines if config.certificate is None else [*lines, f"Certificate: {config.certificate.words}."]


def figures(config: TunedConfig) -> list[str]:
    """What was promised and what was measured, a line each."""
    lines = promises(config)
    for name, measured in (("held-out", config.measured.held_out), ("search", config.measured.search)):
        if measured is not None:
            lines.append(f"Measured on {counted(measured.prompts, f'{name} prompt')}: {_measured(measured)}.")
    return lines


def _measured(measured: Measured) -> str:
    quality = ", ".join(f"{name} {value:.4g}" for name, value in measured.quality.items())
    return f"{measured.speedup_flops:.2f}x fewer FLOPs" + (f", {quality}" if quality else "")
