"""What the project's web pages share: each is one HTML file, which opens without a server, in light and in dark."""

import html
from collections.abc import Mapping, Sequence
from typing import Any


def page(title: str, body: Sequence[str], *, style: str = "", reload_seconds: int | None = None) -> str:
    """A whole page.

    Args:
      title: plain text, for the browser's tab.
      body: its parts, HTML.
      style: CSS beside what all pages have.
      reload_seconds: after which it loads itself again; None: never.
    """
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}{style}</style>",
    ]
    if reload_seconds is not None:
        head.append(f'<meta http-equiv="refresh" content="{reload_seconds}">')
    lines = ["<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", *body, "</body>", "</html>"]
    return "\n".join(lines) + "\n"


def details(summary: str, content: str) -> str:
    """Content (HTML) that is folded away under a line of text."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def facts(rows: Mapping[str, Any]) -> str:
    """A table of names and values."""
    cells = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f'<table class="facts">\n{cells}\n</table>'


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by names like `clip.frames`."""
    fields: dict[str, Any] = {}
    for name, value in tree.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return fields


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --quiet: #5c6470; --page: #f6f7f9; --card: #fff; --edge: #dfe3e8;
  --grid: #e6e9ee; --accent: #2257c9; --good: #1a7f45; --bad: #b3261e;
  --line-0: #2257c9; --line-1: #c2560c; --line-2: #1a7f45; --line-3: #8b3fb8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --quiet: #9aa3af; --page: #14161a; --card: #1d2026;
  --edge: #31363f; --grid: #30353d; --accent: #7fa8ff; --good: #5cc98a; --bad: #ff8a80;
  --line-0: #7fa8ff; --line-1: #f2a05c; --line-2: #5cc98a; --line-3: #cf9bf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem) 4rem; max-width: 84rem; color: var(--ink);
  background: var(--page); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.25rem 0 .5rem; font-size: 1.2rem; }
h3 { margin: 0; font-size: 1rem; }
p { margin: .25rem 0; }
a { color: var(--accent); }
.quiet { color: var(--quiet); font-size: .875rem; }
figure { margin: 0; min-width: 0; padding: .9rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: .6rem; }
.clips { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr)); }
video { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated;
  background: #000; border-radius: .3rem; }
figcaption small { color: var(--quiet); }
.clips figcaption { margin-top: .5rem; line-height: 1.35; }
details { margin: .5rem 0; padding: .6rem .9rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: .6rem; }
summary { cursor: pointer; font-weight: 600; }
table { width: 100%; margin-top: .5rem; border-collapse: collapse; font-size: .875rem; }
th, td { padding: .2rem .5rem .2rem 0; border-top: 1px solid var(--edge); text-align: left; vertical-align: top; }
th { font-weight: 400; color: var(--quiet); }
.facts th { width: 50%; }
pre { max-height: 30rem; overflow: auto; font-size: .75rem; line-height: 1.35; overflow-wrap: normal; }
"""
