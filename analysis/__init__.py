"""Seeing where a model repeats itself: recordings, profiles, quality metrics, figures and TensorBoard."""

from fastercache.extras import need

need("lab", "fastercache.analysis")

from fastercache.analysis.board import Board
from fastercache.analysis.calibrate import Calibration, Calibrator, calibrate
from fastercache.analysis.comparing import Comparison, compare
from fastercache.analysis.measures import MEASURES, band_similarity, cosine, relative_l1, relative_l2, similarity
from fastercache.analysis.metrics import Metric, known_metrics, measure, register_metric
from fastercache.analysis.profile import Profile, ProfileInfo
from fastercache.analysis.quality import as_videos
from fastercache.analysis.record import Recorder, record

__all__ = [
    "MEASURES",
    "Board",
    "Calibration",
    "Calibrator",
    "Comparison",
    "Metric",
    "Profile",
    "ProfileInfo",
    "Recorder",
    "as_videos",
    "band_similarity",
    "calibrate",
    "compare",
    "cosine",
    "known_metrics",
    "measure",
    "record",
    "register_metric",
    "relative_l1",
    "relative_l2",
    "similarity",
]
