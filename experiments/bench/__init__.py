"""Comparing entries on the same prompts: the contest, its line-up, other packages, standings and verdicts."""
