"""Seeing where a model repeats itself: recordings, profiles, quality metrics, figures and TensorBoard."""

from analysis.board import Board
from analysis.calibrate import Calibration, Calibrator, calibrate
from analysis.measures import MEASURES, band_similarity, cosine, relative_l1, relative_l2, similarity
from analysis.profile import Profile, ProfileInfo
from analysis.quality import as_videos, measure
from analysis.record import Recorder, record

__all__ = [
    "MEASURES",
    "Board",
    "Calibration",
    "Calibrator",
    "Profile",
    "ProfileInfo",
    "Recorder",
    "as_videos",
    "band_similarity",
    "calibrate",
    "cosine",
    "measure",
    "record",
    "relative_l1",
    "relative_l2",
    "similarity",
]
