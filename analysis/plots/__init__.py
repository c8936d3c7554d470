"""Figures, each a pair: `*_info` makes a plain result that tests can check, `draw_*` turns it into a matplotlib Figure.

>>> figure = draw_redundancy(redundancy_info(profile))                                    # doctest: +SKIP
>>> save_png(figure, "redundancy.png")                                                   # doctest: +SKIP
"""

from fastercache.analysis.plots.comparison import ComparisonInfo, ComparisonPoint, comparison_info, draw_comparison
from fastercache.analysis.plots.guidance import GuidanceInfo, draw_guidance, guidance_info
from fastercache.analysis.plots.overview import overview
from fastercache.analysis.plots.pareto import ParetoInfo, ParetoPoint, draw_pareto, pareto_info
from fastercache.analysis.plots.redundancy import RedundancyInfo, draw_redundancy, redundancy_info
from fastercache.analysis.plots.similarity import SimilarityInfo, draw_similarity, similarity_info
from fastercache.analysis.plots.style import save_png
from fastercache.analysis.plots.timeline import TimelineInfo, draw_timeline, timeline_info

__all__ = [
    "ComparisonInfo",
    "ComparisonPoint",
    "GuidanceInfo",
    "ParetoInfo",
    "ParetoPoint",
    "RedundancyInfo",
    "SimilarityInfo",
    "TimelineInfo",
    "comparison_info",
    "draw_comparison",
    "draw_guidance",
    "draw_pareto",
    "draw_redundancy",
    "draw_similarity",
    "draw_timeline",
    "guidance_info",
    "overview",
    "pareto_info",
    "redundancy_info",
    "save_png",
    "similarity_info",
    "timeline_info",
]
