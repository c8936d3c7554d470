"""The site as `make docs` builds it: strict, whole, and of use on a machine without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastercache.experiments.site import api, errors
from fastercache.experiments.site.pages import ROOT
from tests.experiments.report.browser import CHROMIUM, DRIVER, MISSING, browser

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


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)
def test_the_search_works_on_pages_read_from_disk(site: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as window:
        window.open(site / "index.html")
        window.run(
            "const field = document.querySelector('[data-md-component=search-query]');"
            "document.querySelector('#__search').checked = true; field.focus(); field.value = 'BudgetNotMet';"
            "field.dispatchEvent(new Event('input', {bubbles: true}));"
            "field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}));"
        )
        found: list[str] = []
        for _ in range(120):
            found = window.run("return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)")
            if found:
                break
            time.sleep(0.5)
        assert any(link.split("?")[0].endswith("errors/BudgetNotMet.html") for link in found), found
