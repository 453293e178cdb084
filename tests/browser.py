"""A real Chromium without a window, in which tests open pages of files and of servers."""

import contextlib
import html
import json
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(_BROWSER is None, reason="needs Chromium")

# Folds everything out, waits until every picture and clip is there or has failed, then says what the page has become.
_LOOK = """<script>
addEventListener("load", async () => {
  for (const image of document.querySelectorAll("img")) image.loading = "eager";
  for (const details of document.querySelectorAll("details")) details.open = true;
  const media = [...document.querySelectorAll("img, video")];
  const ready = (item) => item.complete || item.readyState >= 2 || item.error;
  while (!media.every(ready)) await new Promise((done) => setTimeout(done, 20));
  const loaded = media.map((item) => [item.getAttribute("src"), item.naturalWidth || item.videoWidth || 0]);
  const root = document.documentElement;
  parent.postMessage({ media: loaded, width: root.clientWidth, content: root.scrollWidth,
    text: document.body.innerText, title: document.title }, "*");
});
</script>"""
# A frame may be narrower than a window.
_FRAME = """<!doctype html><iframe src="{source}" style="width: {width}px; height: 900px"></iframe><pre></pre>
<script>onmessage = (event) => document.querySelector("pre").textContent = JSON.stringify(event.data);</script>"""


def open_page(page: pathlib.Path, width: int = 1280) -> dict:
    """Opens a copy of `page`, beside it, `width` pixels wide, with everything folded out.

    Returns:
      `media`: `[source, width in pixels]` of each picture and clip, 0 if it did not load; `width` of the page and of
      its `content`; `title`; `text` as it is seen; `console`: what the browser printed of the page.
    """
    copy, frame = page.with_name("opened_by_test.html"), page.with_name("frame_of_test.html")
    copy.write_text(page.read_text() + _LOOK)
    frame.write_text(_FRAME.format(source=copy.name, width=width))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")
    options += ("--virtual-time-budget=30000", f"--user-data-dir={page.parent}/browser")
    process = subprocess.run(
        [_BROWSER, *options, frame.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    copy.unlink()
    frame.unlink()
    found = re.search(r"<pre>(.+?)</pre>", process.stdout, re.DOTALL)
    assert found, process.stderr[-3000:]
    console = [line for line in process.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])) | {"console": console}


@contextlib.contextmanager
def driven_browser() -> Iterator[Any]:
    """A browser that tests click and type in: Playwright's. Skips the test that has none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    if _BROWSER is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        with contextlib.closing(started.chromium.launch(executable_path=_BROWSER, args=options)) as opened:
            yield opened
