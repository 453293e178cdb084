"""Small studies, and raters who answer over HTTP as the page does."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator

import numpy as np

from lumiere_jax.data.video_io import write_mp4
from lumiere_jax.study.pairs import Pair
from lumiere_jax.study.server import StudyServer

METHODS = ("our_model", "their_baseline")
FPS = 8


def clip(seed, frames=4, size=16):
    """Blocks in random colours that move."""
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    image = blocks.repeat(size // 4, 0).repeat(size // 4, 1)
    return np.stack([np.roll(image, frame, axis=1) for frame in range(frames)])


def write_pairs(root, count, **options) -> list[Pair]:
    """Two directories of lossless clips, as `evaluate` writes them, and `prompts.txt`; `options`: of `clip`."""
    prompts = [f"a thing of number {number}" for number in range(count)]
    (root / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    files = [[root / method / f"{number:05d}.mp4" for number in range(count)] for method in METHODS]
    for place, of_method in enumerate(files):
        of_method[0].parent.mkdir(parents=True)
        for number, file in enumerate(of_method):
            write_mp4(file, clip([place, number], **options), FPS, lossless=True)
    return [Pair(*pair) for pair in zip(prompts, *files, strict=True)]


@contextlib.contextmanager
def running(server: StudyServer) -> Iterator[tuple[str, int]]:
    """Serves from a thread; gives the address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[:2]
    finally:
        server.shutdown()
        thread.join()


class Rater:
    """A browser's part of the conversation; keeps its cookie."""

    def __init__(self, address):
        self.address, self.cookie = address, ""

    def request(self, method, path, body=b"", headers=None):
        """Status, headers and content of the answer."""
        sent = {"Content-Type": "application/json"} if method == "POST" else {}
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=30)) as connection:
            connection.request(method, path, body or None, sent | {"Cookie": self.cookie} | (headers or {}))
            answer = connection.getresponse()
            content = answer.read()
        if "Set-Cookie" in answer.headers:
            self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        return answer.status, answer.headers, content

    def _json(self, *request):
        status, _, content = self.request(*request)
        assert status == 200, content
        return json.loads(content)

    def start(self):
        return self._json("POST", "/raters", b"{}")

    def trial(self):
        return self._json("GET", "/trial")

    def vote(self, number, quality, text):
        """Returns the next trial."""
        return self._json("POST", "/votes", json.dumps({"number": number, "quality": quality, "text": text}).encode())

    def name(self):
        return self.cookie.partition("=")[2]
