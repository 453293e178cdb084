"""The votes of a study in SQLite: safe under many raters at once, and when the server is killed.

A vote is one transaction that is on disk when `vote` returns (write-ahead log, `synchronous=FULL`); a trial has one
vote, however often it is sent.
"""

import contextlib
import json
import os
import pathlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lumiere_jax.study.schedule import Design, next_pair, plan_of

SIDES = ("left", "right")

_TABLES = (
    "CREATE TABLE IF NOT EXISTS study (facts TEXT NOT NULL, methods TEXT NOT NULL, secret TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS raters (rater TEXT PRIMARY KEY, time REAL NOT NULL)",
    """CREATE TABLE IF NOT EXISTS trials (
         rater TEXT NOT NULL REFERENCES raters, number INTEGER NOT NULL, pair INTEGER NOT NULL,
         is_check INTEGER NOT NULL, first_left INTEGER NOT NULL,
         PRIMARY KEY (rater, number), UNIQUE (rater, pair, is_check))""",
    """CREATE TABLE IF NOT EXISTS votes (
         rater TEXT NOT NULL, number INTEGER NOT NULL,
         quality TEXT NOT NULL CHECK (quality IN ('left', 'right')),
         text TEXT NOT NULL CHECK (text IN ('left', 'right')), time REAL NOT NULL,
         PRIMARY KEY (rater, number), FOREIGN KEY (rater, number) REFERENCES trials)""",
)


class Trial(NamedTuple):
    """What a rater is asked; `number` counts from 0, `first_left` is as of `schedule.Slot`."""

    number: int
    pair: int
    is_check: bool
    first_left: bool


class Judgment(NamedTuple):
    """A vote: on which side the better clip was, by each question."""

    rater: str
    trial: Trial
    quality: str
    text: str

    def chose_first(self, question: str) -> bool:
        """Whether the answer is the first clip: that of method A, or of a check the whole one."""
        return (getattr(self, question) == "left") == self.trial.first_left


class Votes:
    """The database while it takes votes; threads may share it, and so may processes.

    Attributes:
      design: of the study.
      secret: of the study, from `begin` on: by which clips get names that nobody can guess.
    """

    secret: bytes

    def __init__(self, file: str | os.PathLike[str], design: Design, facts: Mapping[str, Any]):
        """Opens a database, which may be new.

        Args:
          file: of the database.
          design: of the study.
          facts: what decides what raters see: the same, or the study is another one. JSON.

        Raises:
          ValueError: the file holds another study.
          sqlite3.Error: it cannot be opened.
        """
        self.design, self._facts, self._lock = design, json.loads(json.dumps(facts)), threading.Lock()
        self._connection = sqlite3.connect(file, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            with self._transaction() as database:
                for table in _TABLES:
                    database.execute(table)
                self._check_study(database, file)
        except BaseException:
            self._connection.close()
            raise

    def _check_study(self, database: sqlite3.Connection, file: str | os.PathLike[str]) -> None:
        found = database.execute("SELECT facts FROM study").fetchone()
        before = json.loads(found[0]) if found else self._facts
        differing = [name for name in sorted({*self._facts, *before}) if self._facts.get(name) != before.get(name)]
        if differing:
            raise ValueError(
                f"{file} holds the votes of a study with other {', '.join(differing)}: give another --output, or the "
                "clips and flags that it was begun with"
            )

    def begin(self, methods: Mapping[str, str]) -> None:
        """From here on the database is this study's; does nothing where it is already.

        Args:
          methods: names of `a` and `b`, for the results.
        """
        with self._transaction() as database:
            row = (json.dumps(self._facts), json.dumps(dict(methods)), secrets.token_hex(32))
            database.execute("INSERT INTO study SELECT ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM study)", row)
            (secret,) = database.execute("SELECT secret FROM study").fetchone()
        self.secret = bytes.fromhex(secret)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing; on disk when it ends."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """Closes the database."""
        self._connection.close()

    def new_rater(self) -> str:
        """The name of a new rater, which nobody can guess."""
        rater = secrets.token_hex(16)
        with self._transaction() as database:
            database.execute("INSERT INTO raters VALUES (?, ?)", (rater, time.time()))
        return rater

    def knows(self, rater: str) -> bool:
        """Whether there is such a rater."""
        with self._transaction() as database:
            return database.execute("SELECT 1 FROM raters WHERE rater = ?", (rater,)).fetchone() is not None

    def trial(self, rater: str) -> Trial | None:
        """The trial that a known rater has to judge; None: all are judged.

        It stays the same until there is a vote. Its pair is one that all raters together have seen least: whoever
        leaves takes at most one pair away.
        """
        plan = plan_of(self.design, rater)
        with self._transaction() as database:
            (number,) = database.execute("SELECT COUNT(*) FROM votes WHERE rater = ?", (rater,)).fetchone()
            if number == len(plan.slots):
                return None
            columns = "SELECT pair, is_check, first_left FROM trials WHERE rater = ? AND number = ?"
            opened = database.execute(columns, (rater, number)).fetchone()
            if opened is None:
                slot = plan.slots[number]
                if slot.is_check:
                    pair = plan.checks[sum(before.is_check for before in plan.slots[:number])]
                else:
                    of_rater = database.execute("SELECT pair FROM trials WHERE rater = ? AND NOT is_check", (rater,))
                    seen = {pair for (pair,) in of_rater}
                    counts = database.execute("SELECT pair, COUNT(*) FROM trials WHERE NOT is_check GROUP BY pair")
                    pair = next_pair(plan.order, seen, dict(counts.fetchall()))
                opened = (pair, *slot)
                database.execute("INSERT INTO trials VALUES (?, ?, ?, ?, ?)", (rater, number, *opened))
        pair, is_check, first_left = opened
        return Trial(number, pair, bool(is_check), bool(first_left))

    def vote(self, rater: str, number: int, quality: str, text: str) -> None:
        """Stores a vote; a second one on the same trial changes nothing.

        Args:
          rater: a known one.
          number: of a trial that the rater was shown.
          quality, text: the answers, each one of `SIDES`.

        Raises:
          ValueError: the rater was not shown such a trial.
        """
        with self._transaction() as database:
            shown = database.execute("SELECT 1 FROM trials WHERE rater = ? AND number = ?", (rater, number))
            if shown.fetchone() is None:
                raise ValueError(f"trial {number} was not shown")
            row = (rater, number, quality, text, time.time())
            database.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row)


def read_judgments(file: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str], list[Judgment]]:
    """What is in a database, which may be in use.

    Returns:
      the study's facts; the names of its methods; all judgments in the order of raters and trials.

    Raises:
      FileNotFoundError: there is no such file, or no study in it.
      sqlite3.Error: it is no database of votes.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file}: there are no votes yet")
    with contextlib.closing(sqlite3.connect(f"{pathlib.Path(file).absolute().as_uri()}?mode=ro", uri=True)) as database:
        study = database.execute("SELECT facts, methods FROM study").fetchone()
        if study is None:
            raise FileNotFoundError(f"{file}: its study has not begun yet")
        rows = database.execute(
            "SELECT rater, number, pair, is_check, first_left, quality, text FROM votes JOIN trials USING (rater, "
            "number) ORDER BY rater, number"
        )
        judgments = [
            Judgment(rater, Trial(number, pair, bool(is_check), bool(first_left)), quality, text)
            for rater, number, pair, is_check, first_left, quality, text in rows
        ]
    return json.loads(study[0]), json.loads(study[1]), judgments
