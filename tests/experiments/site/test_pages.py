"""What the site is made of: every page in its place, every public name with a docstring, links that lead somewhere.

`make docs` builds the site and is strict; here is what can be told without it.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

import fastercache as fc
from fastercache.experiments.site import api, catalogue, errors, prices
from fastercache.experiments.site.pages import OTHERS, ROOT, moved, source, target


def test_a_link_to_a_page_leads_there_and_one_to_another_file_is_written_out() -> None:
    assert moved("[a](docs/see.md#x) and ![b](docs/images/overview.png)", "README.md") == (
        "[a](see.md#x) and ![b](images/overview.png)"
    )
    assert moved("[home](../README.md), [b](see.md)", "docs/design.md") == "[home](index.md), [b](see.md)"
    card = "experiments/reference/latte-digits/README.md"
    assert moved("[b](../../../docs/bench/x.json)", card) == "[b](../bench/x.json)"
    assert moved("[the table](../fastercache/model/families.py)", "docs/design.md") == (
        "the table (`fastercache/model/families.py`)"
    )
    same = "`[code](docs/see.md)`, [web](https://a.b/c.md), [here](#there), [gone](docs/nothing.txt)"
    assert moved(same, "README.md") == same.replace("(docs/nothing.txt)", "(nothing.txt)").replace(
        "`[code](nothing", "`[code](docs/see.md"
    )
    assert all(source(page) == file and target(file) == page for file, page in OTHERS.items())
    assert source("policies.md") is None and target("policies/base.py") is None


def test_every_page_stands_in_the_navigation_once() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)

    def leaves(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [leaf for item in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(item)]

    listed = leaves(config["nav"])
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    made = {"policies.md", "errors/index.md", *(f"api/{name}.md" for name in api.pages()), *OTHERS.values()}
    assert sorted(listed) == sorted(own | made)


def test_every_public_name_says_what_it_is() -> None:
    for name, page in api.pages().items():
        assert api.silent(page.names) == [], name
        assert len(set(page.names)) == len(page.names), name
        assert api.markdown(page).count("\n::: ") == len(page.names)
    everywhere = {name.rpartition(".")[2] for page in api.pages().values() for name in page.names}
    assert {"attach", "Session", "record", "tune", "Planner", "certificate", "plan", "certify"} <= everywhere


class Mute:
    """A class that says what it is, and nothing of what it does."""

    def shown(self) -> None:
        """Says so."""

    def silent(self) -> None: ...

    @property
    def quiet(self) -> int:
        return 0


def test_a_method_without_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "named", {"m.Mute": Mute, "m.f": lambda: None}.__getitem__)
    assert api.silent(("m.Mute", "m.f")) == ["m.Mute.silent", "m.Mute.quiet", "m.f"]


def test_the_page_of_policies_has_every_policy_and_every_field() -> None:
    text = catalogue.page()
    for name, policy in fc.known_policies().items():
        if policy.__module__.startswith("fastercache."):
            section = re.split(rf"^## {name}$", text, flags=re.MULTILINE)[1].partition("\n## ")[0]
            assert all(f"\n| `{field}` | " in section for field in policy.model_fields), name
            assert policy.citation is None or policy.citation.url in section
    field = {"default": "1", "allowed": "1 | 2", "meaning": "m | n"}
    row = catalogue.section("X", {"name": "x", "about": "A.", "citation": None, "fields": {"a": field}})[-2]
    assert row == r"| `a` | `1` | `1 | 2` | m \| n |"


def test_the_prices_are_those_of_the_measured_figures() -> None:
    text = prices.PAGE.read_text(encoding="utf-8")
    assert text.partition(f"{prices.BEGIN}\n")[2].partition(prices.END)[0] == prices.table()
    # CogVideoX-2B by hand: 12.556 s for 20 steps, so 31.39 s for 50; 24 of them are 12.6 min.
    assert "| 50 | 0.63 s | 31 s | 5 min | 13 min | 37 min | 4.9 GiB | 34 MiB |" in text
    assert prices.minutes(5399) == "90 min" and prices.minutes(5400) == "1.5 h"


def test_the_tools_of_the_site_are_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert extras["docs"] and all(re.split(r"[\[<>=]", need)[0] in pinned for need in extras["docs"])
    assert errors.overview().startswith("# Errors")
