"""Votes in SQLite: once each, spread evenly, safe between threads, and only of one study."""

import collections
import concurrent.futures
import contextlib
import sqlite3

import pytest

from lumiere_jax.study.schedule import Design
from lumiere_jax.study.votes import Judgment, Trial, Votes, read_judgments

DESIGN = Design(tuple(map(str, range(9))), seed=1, judgments=6, check_every=3)
FACTS = {"prompts": list(DESIGN.prompts), "clips of a": ["1", "2"]}
METHODS = {"a": "x", "b": "y"}


@contextlib.contextmanager
def opened(directory, facts=FACTS):
    with contextlib.closing(Votes(directory / "votes.sqlite", DESIGN, facts)) as votes:
        votes.begin(METHODS)
        yield votes


def judgments(directory):
    return read_judgments(directory / "votes.sqlite")[2]


def test_from_the_first_trial_to_the_last(tmp_path):
    with opened(tmp_path) as votes:
        rater = votes.new_rater()
        assert votes.knows(rater)
        assert not votes.knows(rater[::-1])
        seen = []
        while trial := votes.trial(rater):
            assert votes.trial(rater) == trial  # a reload
            seen.append(trial)
            votes.vote(rater, trial.number, "left", "right")
        assert [trial.number for trial in seen] == list(range(8))
        assert sum(trial.is_check for trial in seen) == 2
        assert len({trial.pair for trial in seen if not trial.is_check}) == 6
    found = judgments(tmp_path)
    assert [(vote.rater, vote.trial, vote.quality, vote.text) for vote in found] == [
        (rater, trial, "left", "right") for trial in seen
    ]


def test_a_vote_counts_once_and_the_first_stays(tmp_path):
    with opened(tmp_path) as votes:
        rater = votes.new_rater()
        first = votes.trial(rater)
        votes.vote(rater, first.number, "left", "right")
        votes.vote(rater, first.number, "left", "right")
        votes.vote(rater, first.number, "right", "right")
        assert votes.trial(rater).number == 1
    assert [(vote.quality, vote.text) for vote in judgments(tmp_path)] == [("left", "right")]


def test_only_what_was_shown_can_be_judged(tmp_path):
    with opened(tmp_path) as votes:
        rater, other = votes.new_rater(), votes.new_rater()
        votes.trial(rater)
        for who, number in ((rater, 1), (rater, -1), (other, 0), ("0" * 32, 0)):
            with pytest.raises(ValueError, match="was not shown"):
                votes.vote(who, number, "left", "left")
        with pytest.raises(sqlite3.IntegrityError):
            votes.vote(rater, 0, "both", "left")
    assert judgments(tmp_path) == []


def test_judgments_are_spread_evenly(tmp_path):
    with opened(tmp_path) as votes:
        for number in range(7):
            rater = votes.new_rater()
            for _ in range(8 if number % 3 else 2):  # some leave early
                votes.vote(rater, votes.trial(rater).number, "left", "left")
    counts = collections.Counter(vote.trial.pair for vote in judgments(tmp_path) if not vote.trial.is_check)
    assert set(counts) == set(range(9))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_raters_go_on_after_a_restart(tmp_path):
    with opened(tmp_path) as votes:
        rater = votes.new_rater()
        votes.vote(rater, votes.trial(rater).number, "left", "left")
        trial, secret = votes.trial(rater), votes.secret
    with opened(tmp_path) as votes:
        assert votes.trial(rater) == trial
        assert votes.secret == secret


def test_another_study_is_refused(tmp_path):
    with opened(tmp_path):
        pass
    other = FACTS | {"clips of a": ["1", "3"], "size": 4}
    message = r"votes.sqlite holds the votes of a study with other clips of a, size: give"
    with pytest.raises(ValueError, match=message), opened(tmp_path, other):
        pass
    with opened(tmp_path):
        pass


def test_a_study_that_has_not_begun_keeps_no_place(tmp_path):
    Votes(tmp_path / "votes.sqlite", DESIGN, FACTS | {"size": 4}).close()
    with pytest.raises(FileNotFoundError, match="has not begun yet"):
        judgments(tmp_path)
    with opened(tmp_path):
        assert judgments(tmp_path) == []


def test_what_is_no_database_is_refused(tmp_path):
    (tmp_path / "votes.sqlite").write_text("no database " * 100)
    with pytest.raises(sqlite3.DatabaseError), opened(tmp_path):
        pass
    with pytest.raises(sqlite3.DatabaseError):
        judgments(tmp_path)
    with pytest.raises(FileNotFoundError, match="no votes yet"):
        read_judgments(tmp_path / "nothing.sqlite")


def test_many_threads_and_two_processes_at_once(tmp_path):
    """Two connections stand for two servers; each trial is sent by two threads, as by a double click."""
    with opened(tmp_path) as one, opened(tmp_path) as other, concurrent.futures.ThreadPoolExecutor(8) as threads:

        def rate(number):
            votes = (one, other)[number % 2]
            rater = votes.new_rater()
            while trial := votes.trial(rater):
                sent = [
                    threads_of_clicks.submit(each.vote, rater, trial.number, "left", "right") for each in (one, other)
                ]
                for vote in sent:
                    vote.result()

        with concurrent.futures.ThreadPoolExecutor(8) as threads_of_clicks:
            list(threads.map(rate, range(12)))
    found = judgments(tmp_path)
    assert len(found) == len({(vote.rater, vote.trial.number) for vote in found}) == 12 * 8
    counts = collections.Counter(vote.trial.pair for vote in found if not vote.trial.is_check)
    assert max(counts.values()) - min(counts.values()) <= 2  # who is at the end may have seen the others


def test_a_vote_is_on_disk_when_it_is_acknowledged(tmp_path):
    """Another connection sees it at once, and the log is flushed with each transaction."""
    with opened(tmp_path) as votes:
        rater = votes.new_rater()
        trial = votes.trial(rater)
        votes.vote(rater, trial.number, "right", "left")
        assert len(judgments(tmp_path)) == 1
        assert votes._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert votes._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_sides_are_swapped_back():
    assert Judgment("r", Trial(0, 0, False, True), "left", "right").chose_first("quality")
    assert not Judgment("r", Trial(0, 0, False, True), "left", "right").chose_first("text")
    assert not Judgment("r", Trial(0, 0, False, False), "left", "right").chose_first("quality")
    assert Judgment("r", Trial(0, 0, False, False), "left", "right").chose_first("text")
