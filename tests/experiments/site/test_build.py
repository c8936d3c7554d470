"""The site as `make docs` builds it: strict, whole, and of use on a machine without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastercache.experiments.site import api, errors
from fastercache.experiments.site.pages import ROOT

pytest.importorskip("mkdocs", reason="no mkdocs: make docs installs it")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("site")
    words = (sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out))
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    yield out


def test_every_page_is_there_and_nothing_is_fetched(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {f"errors/{name}.html" for name in errors.known()} | {"index.html", "policies.html"} <= pages
    for page in pages:
        text = (site / page).read_text(encoding="utf-8")
        assert not re.search(r"<(script|link|img)\b[^>]*(src|href)=\"?https?://", text), page
    for name, page in api.pages().items():
        text = (site / "api" / f"{name}.html").read_text(encoding="utf-8")
        assert [full for full in page.names if f'id="{full}"' not in text] == []
