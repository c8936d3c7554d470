"""What tests of commands share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from fastercache.experiments import pipelines


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[None]:
    """Each folder is loaded once for all tests of a module; commands detach whatever they attach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "_load", functools.cache(pipelines._load))
        yield
