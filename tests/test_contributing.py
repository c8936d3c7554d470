"""The examples of CONTRIBUTING.md do what it says of them, and what stands beside it is valid."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import torch
import yaml

import fastercache as fc
from fastercache import zoo
from fastercache.testing import check_policy
from tests.experiments.pages import ROOT, python

FIELDS = {
    "cff-version", "title", "message", "type", "version", "license", "authors", "references", "abstract", "keywords",
}  # fmt: skip
"""What the Citation File Format 1.2.0 calls these; others exist and are not used."""


@pytest.mark.usefixtures("own_registry")
def test_the_examples() -> None:
    space: dict[str, Any] = {}
    for block in python("CONTRIBUTING.md"):
        assert len([line for line in block.splitlines() if line.strip()]) <= 10
        exec(compile(block, "CONTRIBUTING.md", "exec"), space)
    policy = space["EverySecond"](interval=3)
    report = check_policy(policy, zoo.build("latte"), steps=4, laws=(1, 2, 3, 7))
    report.raise_if_broken()
    assert report.reused > 0

    past = [fc.Past(None, torch.tensor(value)) for value in (1.0, 4.0)]  # type: ignore[arg-type]
    assert space["Midway"]().predict(past, None) == 2.5

    videos = torch.zeros(2, 1, 3, 2, 2)
    videos[1, 0, 0, 0, 0] = 1.0
    assert space["redness"].fn(videos, torch.zeros_like(videos), ["a", "b"]).tolist() == [0.0, 0.25]

    with pytest.raises(fc.InvalidFamily, match="another family"):
        fc.register_family(space["MyTransformer3DModel"], fc.Family("separate", order=("cond", "uncond")))


def test_the_citation_is_valid() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert found.keys() <= FIELDS and {"cff-version", "title", "message", "authors"} <= found.keys()
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert (found["version"], found["license"]) == (project["version"], project["license"])
    for work in (found, *found["references"]):
        assert work["title"] and all(who.keys() <= {"name", "family-names", "given-names"} for who in work["authors"])
    assert all({"type", "authors", "title"} <= reference.keys() for reference in found["references"])
