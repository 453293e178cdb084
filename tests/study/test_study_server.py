"""The server: what it tells and what it does not, and what it makes of bad requests."""

import contextlib
import http.client
import json
import re
import socket

import pytest
from study_raters import METHODS, Rater, running, write_pairs

from lumiere_jax.study.schedule import Design
from lumiere_jax.study.votes import read_judgments
from lumiere_jax.user_study import open_study


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def server(root):
    pairs = write_pairs(root, 6)
    design = Design(tuple(pair.prompt for pair in pairs), seed=0, judgments=6, check_every=3)
    with open_study(pairs, design, root / "output", dict(zip("ab", METHODS, strict=True))) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(server):
    with running(server) as where:
        yield where


@pytest.fixture
def rater(address):
    return Rater(address)


def test_a_rater_from_start_to_end(rater, root):
    assert rater.trial() == {"state": "new"}
    trial = rater.start()
    assert trial == rater.trial() == rater.start()  # a reload; a second click
    prompts = []
    while trial["state"] == "trial":
        assert (trial["number"], trial["total"]) == (len(prompts) + 1, 8)
        prompts.append(trial["prompt"])
        trial = rater.vote(trial["number"], "left", "right")
    assert trial == rater.trial() == {"state": "done"}
    assert set(prompts) == {f"a thing of number {number}" for number in range(6)}
    votes = [vote for vote in read_judgments(root / "output" / "votes.sqlite")[2] if vote.rater == rater.name()]
    assert [(vote.quality, vote.text) for vote in votes] == [("left", "right")] * 8


def test_the_clips_are_on_the_sides_that_are_stored(rater, root, server):
    """A vote for the left is a vote for the clip that was shown there."""
    trial, names = rater.start(), []
    while trial["state"] == "trial":
        shown = {side: rater.request("GET", trial[side])[2] for side in ("left", "right")}
        names.append({side: name_of(content, server, root) for side, content in shown.items()})
        trial = rater.vote(trial["number"], "left", "right")
    votes = [vote for vote in read_judgments(root / "output" / "votes.sqlite")[2] if vote.rater == rater.name()]
    for vote, shown in zip(votes, names, strict=True):
        first = shown["left"] if vote.chose_first("quality") else shown["right"]
        pair = f"{vote.trial.pair:05d}"
        assert first == (f"{pair}_{'ab'[vote.trial.pair % 2]}" if vote.trial.is_check else f"{pair}_a")
        assert vote.chose_first("quality") != vote.chose_first("text")


def name_of(content, server, root):
    (clips,) = (root / "output").glob("clips_*")
    (found,) = [file.stem for file in clips.iterdir() if file.read_bytes() == content]
    return found


def test_nothing_tells_the_methods_or_the_checks(address, server):
    """All that is sent, for some raters: no name, no path, no shape that differs between methods or checks."""
    told, shapes, statuses = [], set(), set()
    for _ in range(4):
        rater = Rater(address)
        sent = [rater.request("GET", "/"), rater.request("POST", "/raters", b"{}")]
        trial = json.loads(sent[-1][2])
        while trial["state"] == "trial":
            shapes.add(tuple(trial))
            for side in ("left", "right"):
                assert re.fullmatch(r"/clips/[0-9a-f]{32}", trial[side])
                status, headers, content = rater.request("GET", trial[side])
                statuses.add(status)
                sent.append((status, {name: value for name, value in headers.items() if name != "Content-Length"}, b""))
                assert b"generated" not in content
            vote = {"number": trial["number"], "quality": "left", "text": "left"}
            sent.append(rater.request("POST", "/votes", json.dumps(vote).encode()))
            trial = json.loads(sent[-1][2])
        told += [f"{dict(headers)} {content.decode()}" for _, headers, content in sent]
    everything = "\n".join(told)
    for name in (*METHODS, "0000", "damaged", ".mp4", "is_check", "attention", "first_left", "output"):
        assert name not in everything
    assert len(shapes) == 1
    assert statuses == {200}
    of_clips = {headers for headers in told if "video/mp4" in headers}
    assert len({re.sub(r"'Date': '[^']*'", "", headers) for headers in of_clips}) == 1


def test_tokens_are_the_studys_own(server, tmp_path):
    """Whoever has the clips of one study cannot tell those of another."""
    pairs = write_pairs(tmp_path, 1)
    with open_study(
        pairs, Design((pairs[0].prompt,), 0, 1, 0), tmp_path / "output", dict(zip("ab", METHODS, strict=True))
    ) as other:
        assert other.clip_token("00000_a") != server.clip_token("00000_a")
        assert other.cookie != server.cookie


def test_orders_and_sides_differ_between_raters(address):
    seen = []
    for _ in range(4):
        rater = Rater(address)
        trial, order = rater.start(), []
        while trial["state"] == "trial":
            order.append((trial["left"], trial["right"]))
            trial = rater.vote(trial["number"], "left", "left")
        seen.append(order)
    assert len({tuple(order) for order in seen}) == 4
    assert any({pair, pair[::-1]} <= set().union(*seen) for pair in set().union(*seen))


def test_clips_in_parts(rater):
    path = rater.start()["left"]
    status, headers, whole = rater.request("GET", path)
    assert (status, headers["Content-Type"], headers["Accept-Ranges"]) == (200, "video/mp4", "bytes")
    assert int(headers["Content-Length"]) == len(whole)
    status, headers, part = rater.request("GET", path, headers={"Range": "bytes=10-19"})
    assert (status, headers["Content-Range"], part) == (206, f"bytes 10-19/{len(whole)}", whole[10:20])
    status, _, part = rater.request("GET", path, headers={"Range": "bytes=-7"})
    assert (status, part) == (206, whole[-7:])
    status, headers, _ = rater.request("GET", path, headers={"Range": f"bytes={len(whole)}-"})
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(whole)}")
    status, headers, nothing = rater.request("HEAD", path)
    assert (status, int(headers["Content-Length"]), nothing) == (200, len(whole), b"")


@pytest.mark.parametrize(
    "path",
    [
        "/clips/../votes.sqlite",
        "/clips/..%2fvotes.sqlite",
        "/clips/00000_a",
        "/clips/00000_a.mp4",
        "/clips/" + "0" * 32,
        "/clips/",
        "/votes.sqlite",
        "//etc/passwd",
        "/raters",
        "*",
    ],
)
def test_nothing_else_is_served(rater, path):
    status, _, content = rater.request("GET", path)
    assert (status, content) == (404, b"There is no such page.")


def vote(**fields):
    return json.dumps({"number": 1, "quality": "left", "text": "left"} | fields).encode()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {"Content-Length": "0"}, 400),
        (b"{", {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 4000, {}, 400),
        (b"[]", {}, 400),
        (b"{}", {}, 400),
        (vote(more=1), {}, 400),
        (vote(quality="both"), {}, 400),
        (vote(text=["left"]), {}, 400),
        (vote(number=0), {}, 400),
        (vote(number=True), {}, 400),
        (vote(number=1.0), {}, 400),
        (vote(number="1"), {}, 400),
        (vote(number=10**30), {}, 400),
        (vote(number=5), {}, 400),  # not shown yet
        (vote(), {"Content-Length": "many"}, 411),
        (vote(), {"Content-Length": "-1"}, 411),
        (vote(), {"Content-Type": "text/plain"}, 415),
        (b" " * 5000, {}, 413),
    ],
)
def test_bad_votes_are_refused_in_words(rater, root, body, headers, status):
    rater.start()
    found, answer, content = rater.request("POST", "/votes", body, headers)
    assert (found, answer.get_content_type(), answer["Connection"]) == (status, "text/plain", "close")
    assert content.decode().endswith((".", "shown"))
    assert rater.trial()["number"] == 1
    assert not [each for each in read_judgments(root / "output" / "votes.sqlite")[2] if each.rater == rater.name()]


def test_who_is_unknown_cannot_vote(rater, server):
    for cookie in ("", f"{server.cookie}={'0' * 32}", f"{server.cookie}=x", "rater=1; ;=", f"{server.cookie}="):
        rater.cookie = cookie
        status, _, content = rater.request("POST", "/votes", vote())
        assert (status, content) == (403, b"Nobody knows you: please load the page again.")
        assert rater.trial() == {"state": "new"}


def test_the_cookie_is_found_among_others(rater):
    trial = rater.start()
    rater.cookie = f"other=1; x{rater.cookie}0; {rater.cookie}; last=2"
    assert rater.trial() == trial


def test_pages_cannot_load_from_or_be_put_into_other_sites(rater):
    status, headers, content = rater.request("GET", "/?from=mail")
    assert (status, headers.get_content_type()) == (200, "text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert b"http" not in content
    rater.request("POST", "/raters", b"{}")
    assert rater.request("PUT", "/votes", b"{}")[0] == 501


def test_a_connection_serves_several_requests(address):
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=30)) as connection:
        for path, status in (("/", 200), ("/trial", 200), ("/nowhere", 404), ("/trial", 200)):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == status
            answer.read()


def test_browsers_that_go_away_are_no_error(address, rater, capfd):
    path = rater.start()["left"]
    for _ in range(5):
        with socket.create_connection(address) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # the close is a reset
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert rater.trial()["state"] == "trial"
    assert capfd.readouterr().err == ""


def test_a_vote_that_cannot_be_stored_is_not_acknowledged(tmp_path):
    pairs = write_pairs(tmp_path, 2)
    design = Design(tuple(pair.prompt for pair in pairs), 0, 2, 0)
    with (
        open_study(pairs, design, tmp_path / "output", dict(zip("ab", METHODS, strict=True))) as server,
        running(server) as address,
    ):
        rater = Rater(address)
        rater.start()
        server.votes._connection.execute("PRAGMA query_only=ON")
        status, _, content = rater.request("POST", "/votes", vote())
        assert (status, content.decode()) == (503, "The votes cannot be stored: attempt to write a readonly database")
        server.votes._connection.execute("PRAGMA query_only=OFF")
        assert rater.vote(1, "left", "left")["number"] == 2
