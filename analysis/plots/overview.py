"""The figures that a recording gives without being asked further."""

from __future__ import annotations

from matplotlib.figure import Figure

from fastercache.analysis.plots.guidance import draw_guidance, guidance_info
from fastercache.analysis.plots.redundancy import draw_redundancy, redundancy_info
from fastercache.analysis.plots.similarity import draw_similarity, similarity_info
from fastercache.analysis.profile import Profile
from fastercache.policies.vocabulary import COND


def overview(profile: Profile) -> dict[str, Figure]:
    """Name -> figure: step x step heatmaps and redundancy in relative L1 and cosine, and the guidance branches.

    The last is left out for a recording without a second branch or the denoiser's output; redundancy for a run of
    a single step.
    """
    figures: dict[str, Figure] = {}
    names = ["|".join(profile.sites[i].name for i in positions) for _, positions in profile.groups()]
    labels = [name for name, _ in profile.groups()]
    for measure in ("rel_l1", "cosine"):
        infos = [similarity_info(profile, query, measure) for query in names]
        infos = [info._replace(query=label) for info, label in zip(infos, labels, strict=True)]
        figures[f"similarity_{measure}"] = draw_similarity(infos)
        if len(profile.info.timesteps) > 1:
            figures[f"redundancy_{measure}"] = draw_redundancy(redundancy_info(profile, measure))
    others = [branch for branch in profile.branches if branch != COND]
    if others and profile.guidance.shape[3]:
        figures["guidance"] = draw_guidance(guidance_info(profile, branch=others[0]))
    return figures
