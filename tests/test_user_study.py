"""The study's command: killed while raters vote, used in a real browser, and what its flags refuse."""

import concurrent.futures
import contextlib
import functools
import http.client
import itertools
import json
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest
from absl import flags
from browser import driven_browser
from study_raters import FPS, METHODS, Rater, clip, running, write_pairs

from lumiere_jax import user_study
from lumiere_jax.data.video_io import write_mp4
from lumiere_jax.evaluation.intervals import wilson
from lumiere_jax.study.schedule import Design
from lumiere_jax.study.votes import read_judgments
from lumiere_jax.user_study import open_study

ROOT = pathlib.Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "lumiere_jax.user_study")


def command(root, *options):
    clips = [f"--{name}={root / method}" for name, method in zip("ab", METHODS, strict=True)]
    return [*COMMAND, *clips, f"--prompts={root / 'prompts.txt'}", f"--output={root / 'output'}", "--port=0", *options]


@pytest.fixture
def run(monkeypatch):
    """Gives a function that runs the command in this process."""

    def run(*arguments):
        values = flags.FlagValues()
        for kind in ("string", "bool", "integer", "float"):
            define = functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=values)
            monkeypatch.setattr(flags, f"DEFINE_{kind}", define)
        monkeypatch.setattr(user_study, "FLAGS", values)
        user_study.define_flags()
        values([*COMMAND[-1:], *arguments])
        user_study.main([])

    return run


@contextlib.contextmanager
def started(arguments):
    """The command's process and the address that it prints; killed at the end."""
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            host, port = re.search(r"http://([\d.]+):(\d+)", line).groups()
            yield process, (host, int(port))
        finally:
            process.kill()


# ------------------------------------------------------------------------------------ killed


def test_killed_while_raters_vote(tmp_path):
    """Whatever was acknowledged is there once, as it was; raters go on where they were."""
    write_pairs(tmp_path, 20)
    arguments = command(tmp_path, "--judgments=12", "--check_every=4")
    raters = [Rater(None) for _ in range(8)]
    acknowledged, enough, lock = {}, threading.Event(), threading.Lock()

    def rate(rater, stop_at):
        with contextlib.suppress(OSError, http.client.HTTPException):
            trial = rater.trial() if rater.cookie else rater.start()
            while trial["state"] == "trial":
                answers = ("left", "right") if (trial["number"] + len(rater.name())) % 3 else ("right", "left")
                key = (rater.name(), trial["number"] - 1)
                trial = rater.vote(trial["number"], *answers)
                with lock:
                    acknowledged.setdefault(key, answers)
                    if len(acknowledged) >= stop_at:
                        enough.set()

    for stop_at in (20, 60, None):
        with started(arguments) as (process, address), concurrent.futures.ThreadPoolExecutor(8) as threads:
            for rater in raters:
                rater.address = address
            enough.clear()
            sent = [threads.submit(rate, rater, stop_at or 10**9) for rater in raters]
            if stop_at:
                assert enough.wait(60)
                process.send_signal(signal.SIGKILL)
            for each in sent:
                each.result()
        stored = read_judgments(tmp_path / "output" / "votes.sqlite")[2]
        found = {(vote.rater, vote.trial.number): (vote.quality, vote.text) for vote in stored}
        assert len(found) == len(stored)
        assert found.items() >= acknowledged.items()
        assert len(stored) <= len(acknowledged) + len(raters)  # stored, and killed before the answer
        acknowledged.update(found)
    assert len(stored) == 8 * 15
    assert len({vote.rater for vote in stored}) == 8


# ------------------------------------------------------------------------------------ results and flags


def test_results(run, capsys, tmp_path):
    """While the server runs: three raters who look, and prefer A, and one who always takes the left side."""
    pairs = write_pairs(tmp_path, 6)
    design = Design(tuple(pair.prompt for pair in pairs), seed=0, judgments=6, check_every=1)
    output = tmp_path / "output"
    with open_study(pairs, design, output, {"a": "ours", "b": "theirs"}) as server, running(server) as address:
        first = {server.clip_token(f"{pair:05d}_a") for pair in range(6)}
        whole = {server.clip_token(f"{pair:05d}_{'ab'[pair % 2]}") for pair in range(6)}
        broken = {server.clip_token(f"{pair:05d}_damaged") for pair in range(6)}
        for number in range(4):
            rater = Rater(address)
            trial = rater.start()
            while trial["state"] == "trial":
                shown = {side: trial[side].removeprefix("/clips/") for side in ("left", "right")}
                liked = whole if broken & set(shown.values()) else first
                best = "left" if number == 3 or shown["left"] in liked else "right"
                trial = rater.vote(trial["number"], best, "left")
        run("--results", f"--output={output}")
    assert "4 raters, of whom 1 failed" in capsys.readouterr().out
    found = json.loads((output / "results.json").read_text())
    quality = found["attentive raters"]["quality"]
    assert (quality["prefers_a"], quality["judgments"]) == (1, 18)
    assert (quality["low"], quality["high"]) == pytest.approx(wilson(18, 18))
    assert found["all raters"]["quality"]["prefers_a"] == pytest.approx((18 + 3) / 24)  # its sides are balanced
    assert found["attentive raters"]["text"]["prefers_a"] == 0.5
    assert found["methods"] == {"a": "ours", "b": "theirs"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--results", "--output=nowhere"], "error: nowhere/votes.sqlite: there are no votes yet"),
        (["--a=x"], "error: give --b, --prompts, or --results: see --help"),
        (["--a=nowhere", "--b=x", "--prompts=README.md"], "error: nowhere holds no video"),
        (["--max_failed=0.5"], "error: --max_failed=0.5 says nothing without --results"),
    ],
)
def test_what_lacks_is_told_in_a_line(run, options, message):
    with pytest.raises(SystemExit, match=message):
        run(*options)


def test_what_was_begun_is_not_mixed_with_something_else(run, tmp_path):
    pairs = write_pairs(tmp_path, 3)
    design = Design(tuple(pair.prompt for pair in pairs), seed=0, judgments=3, check_every=10)
    with open_study(pairs, design, tmp_path / "output", {"a": "ours", "b": "theirs"}):
        files = set((tmp_path / "output").rglob("*"))
    for option, told in (("--seed=1", "other seed:"), ("--size=8", "other size:"), ("--judgments=4", "give 1 to 3")):
        with pytest.raises(SystemExit, match=told):
            run(*command(tmp_path, option)[len(COMMAND) :])
    assert {file for file in files if file.suffix == ".mp4"} == set((tmp_path / "output").rglob("*.mp4"))


def test_clips_that_cannot_be_compared_make_no_study(run, tmp_path):
    pairs = write_pairs(tmp_path, 2)
    write_mp4(pairs[1].b, clip(0, size=20), FPS, lossless=True)
    with pytest.raises(SystemExit, match="people would tell the methods"):
        run(*command(tmp_path)[len(COMMAND) :])
    with started(command(tmp_path, "--size=12")) as (_, address):
        assert Rater(address).start()["total"] == 3


def test_ctrl_c_ends_it_quietly(tmp_path):
    write_pairs(tmp_path, 1)
    with started(command(tmp_path)) as (process, address):
        assert Rater(address).start()["total"] == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


# ------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser():
    with driven_browser() as opened:
        yield opened


@pytest.fixture
def study(tmp_path):
    """Gives a function that serves it."""
    pairs = write_pairs(tmp_path, 3)
    prompts = ('a <b>bold</b> & "quoted" thing', *(pair.prompt for pair in pairs[1:]))
    pairs[0] = pairs[0]._replace(prompt=prompts[0])
    design = Design(prompts, seed=0, judgments=3, check_every=3)

    @contextlib.contextmanager
    def serve():
        methods = dict(zip("ab", METHODS, strict=True))
        with open_study(pairs, design, tmp_path / "output", methods) as server, running(server) as (host, port):
            yield f"http://{host}:{port}"

    serve.votes = lambda: read_judgments(tmp_path / "output" / "votes.sqlite")[2]
    serve.prompts = prompts
    return serve


@contextlib.contextmanager
def page_of(browser, address, **options):
    """A page of a fresh browser profile, which must not complain."""
    with contextlib.closing(browser.new_context(**options)) as context:
        page, complaints = context.new_page(), []
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(address)
        yield page
        assert [each for each in complaints if "ERR_CONNECTION_REFUSED" not in each] == []


def wait_until_watched(page):
    page.locator("#quality:enabled").wait_for()


def place(page, number, total=4):
    page.get_by_text(f"{number} of {total}", exact=True).wait_for()


def test_a_rater_with_the_keyboard(browser, study):
    with study() as address, page_of(browser, address) as page:
        page.get_by_role("button", name="Start").focus()
        page.keyboard.press("Enter")
        prompts = []
        for number in range(1, 5):
            place(page, number)
            prompts.append(page.locator("#prompt").text_content())
            assert page.evaluate("document.activeElement.id") == "progress"
            wait_until_watched(page)
            for key in ("2", "Enter", "4", "3"):  # half an answer is none; the last choice counts
                page.keyboard.press(key)
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="Thank you").wait_for()
        assert page.locator("#trial").is_hidden()
        page.reload()
        page.get_by_role("heading", name="Thank you").wait_for()
    assert set(study.prompts) == set(prompts)
    assert [(vote.quality, vote.text) for vote in study.votes()] == [("right", "left")] * 4


def test_a_rater_with_the_mouse_on_a_phone(browser, study):
    """Leaves in the middle, comes back to the same trial, and double-clicks."""
    with study() as address, page_of(browser, address, viewport={"width": 360, "height": 740}) as page:
        page.get_by_role("button", name="Start").click()
        for number in range(1, 5):
            place(page, number)
            sides = [page.locator(f"#{side}").get_attribute("src") for side in ("left", "right")]
            page.reload()
            place(page, number)
            page.locator("#left[src]").wait_for()
            assert [page.locator(f"#{side}").get_attribute("src") for side in ("left", "right")] == sides
            boxes = [page.locator(f"#{side}").bounding_box() for side in ("left", "right")]
            assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
            assert (boxes[0]["width"], boxes[0]["y"]) == pytest.approx((boxes[1]["width"], boxes[1]["y"]), abs=1)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            wait_until_watched(page)
            page.locator("#quality").get_by_text("Left").click()
            assert page.get_by_role("button", name="Next").is_disabled()
            page.locator("#text").get_by_text("Right").click()
            page.get_by_role("button", name="Next").dblclick()
        page.get_by_role("heading", name="Thank you").wait_for()
    assert [(vote.quality, vote.text) for vote in study.votes()] == [("left", "right")] * 4


def test_both_clips_play_in_step_and_again(browser, study):
    with study() as address, page_of(browser, address) as page:
        page.get_by_role("button", name="Start").click()
        page.locator("#hint", has_text="Please watch").wait_for()
        wait_until_watched(page)
        times = "['left', 'right'].map((id) => document.getElementById(id).currentTime)"
        seen = []
        for _ in range(20):
            seen.append(page.evaluate(times))
            page.wait_for_timeout(50)
        assert max(abs(left - right) for left, right in seen) < 0.25
        assert any(later[0] < earlier[0] for earlier, later in itertools.pairwise(seen))  # from the start
        page.keyboard.press("p")
        page.get_by_role("button", name="Play").wait_for()
        stopped = page.evaluate(times)
        page.wait_for_timeout(200)
        assert page.evaluate(times) == stopped
        page.get_by_role("button", name="Play").click()
        page.get_by_role("button", name="Pause").wait_for()


def test_who_asked_for_less_motion_starts_the_clips(browser, study):
    with study() as address, page_of(browser, address, reduced_motion="reduce") as page:
        page.get_by_role("button", name="Start").click()
        page.get_by_role("button", name="Play").wait_for()
        page.wait_for_timeout(800)
        for key in ("1", "3", "Enter"):
            page.keyboard.press(key)
        assert page.locator("fieldset:disabled").count() == 2
        assert page.locator("input:checked").count() == 0
        page.get_by_role("button", name="Play").click()
        wait_until_watched(page)
        place(page, 1)


def test_the_server_is_killed_and_comes_back(browser, tmp_path):
    write_pairs(tmp_path, 3)
    with contextlib.ExitStack() as stack:
        with started(command(tmp_path)) as (_, (host, port)):
            page = stack.enter_context(page_of(browser, f"http://{host}:{port}"))
            page.get_by_role("button", name="Start").click()
            place(page, 1)
            wait_until_watched(page)
            page.keyboard.press("1")
            page.keyboard.press("3")
        page.keyboard.press("Enter")
        page.get_by_role("alert").filter(has_text="The server does not answer.").wait_for()
        assert page.locator("input:checked").count() == 2
        with started(command(tmp_path, f"--port={port}")):
            page.get_by_role("button", name="Next").click()
            place(page, 2)
            assert page.get_by_role("alert").is_hidden()
    (vote,) = read_judgments(tmp_path / "output" / "votes.sqlite")[2]
    assert (vote.quality, vote.text) == ("left", "left")
