"""What mkdocs calls while it makes the site: pages that are made from code, and links of files that stand elsewhere."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from fastercache.experiments.site import api, catalogue, errors
from fastercache.experiments.site.pages import OTHERS, ROOT, moved, source

REMOTE = re.compile(r'<script src="https?://[^"]*iframe-worker[^"]*"></script>')
"""What the theme would fetch so that the search works on pages read from disk; without it only a served site has it."""


def made() -> dict[str, str]:
    """Every page that has no file under `docs/`, by its name."""
    return {
        "policies.md": catalogue.page(),
        "errors/index.md": errors.overview(),
        **{f"errors/{name}.md": errors.page(told) for name, told in errors.known().items()},
        **{f"api/{name}.md": api.markdown(page) for name, page in api.pages().items()},
        **{page: (ROOT / file).read_text(encoding="utf-8") for file, page in OTHERS.items()},
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the errors' pages in the navigation. Raises PluginError where a public name has no docstring."""
    if silent := [name for page in api.pages().values() for name in api.silent(page.names)]:
        raise PluginError(f"no docstring: {', '.join(silent)}")
    nav: list[Any] = config.nav or []
    (section,) = (entry["Errors"] for entry in nav if isinstance(entry, dict) and "Errors" in entry)
    section += [{name: f"errors/{name}.md"} for name in errors.known()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made from code."""
    for name, text in made().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to files of the repository into links of the site."""
    file = source(page.file.src_uri)
    return markdown if file is None else moved(markdown, file)


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for pages that come from a template alone, such as the one for addresses that are not there."""
    return on_post_page(output_content)


def on_post_page(output: str, **_: Any) -> str:
    """Leave out a script that the theme would fetch. Raises PluginError where anything else would be."""
    output = REMOTE.sub("", output)
    if found := re.search(r"<(?:script|link|img)\b[^>]*(?:src|href)=\"?https?://[^>]*>", output):
        raise PluginError(f"a page would fetch {found[0]}")
    return output
