"""A study with people: `python -m lumiere_jax.user_study --a=DIR --b=DIR --prompts=F`, then open what it prints.

    --a, --b     directories of two methods' clips, as `sample` or `evaluate` writes them, one for each prompt
    --prompts    a text file with a prompt on each line, in the order of the clips' names
    --output     where votes and encoded clips are; the same command continues there
    --results    prints what is there already, and writes OUTPUT/results.json; also while the study runs

Raters see pairs of clips in random order, on random sides, and say which one has the better quality and which one
matches the text better (two-alternative forced choice, paper section 5). docs/evaluation.md says what the numbers are.
The page answers this machine alone, unless `--host` says otherwise.
"""

import contextlib
import hashlib
import json
import pathlib
import sqlite3
import sys
from collections.abc import Iterator
from typing import Any

from absl import app, flags
from absl.flags import FLAGS

from lumiere_jax.study.pairs import Pair, read_pairs
from lumiere_jax.study.results import study_results, summary
from lumiere_jax.study.schedule import Design
from lumiere_jax.study.server import StudyServer
from lumiere_jax.study.shown_clips import prepare_clips
from lumiere_jax.study.votes import Votes, read_judgments

_DATABASE = "votes.sqlite"


@contextlib.contextmanager
def open_study(
    pairs: list[Pair],
    design: Design,
    output: pathlib.Path,
    methods: dict[str, str],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    **brought_to: Any,
) -> Iterator[StudyServer]:
    """A study's server, which has its port and serves when it is told to.

    Args:
      pairs: what is compared.
      design: how.
      output: the directory for votes and encoded clips.
      methods: names of `a` and `b`, for the results; raters never see them.
      host: whose requests are answered.
      port: 0: a free one.
      **brought_to: `frames`, `fps` and `size` of `prepare_clips`.

    Raises:
      ValueError: the clips cannot be compared, or `output` holds another study.
      OSError: the port is in use, or a file cannot be written.
      sqlite3.Error: the database cannot be opened.
    """
    facts = _facts(pairs, design, brought_to)
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    clips = output / f"clips_{fingerprint[:12]}"
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Votes(output / _DATABASE, design, facts)) as votes:
        prepare_clips(pairs, design.checked_pairs(), clips, seed=design.seed, **brought_to)
        votes.begin(methods)  # only now: clips that cannot be compared make no study
        with StudyServer((host, port), votes, clips) as server:
            yield server


def _facts(pairs: list[Pair], design: Design, brought_to: dict[str, Any]) -> dict[str, Any]:
    """What decides what raters see: votes are of these alone."""
    return {
        "prompts": list(design.prompts),
        "clips of a": [_sha256(pair.a) for pair in pairs],
        "clips of b": [_sha256(pair.b) for pair in pairs],
        "seed": design.seed,
        "judgments": design.judgments,
        "check_every": design.check_every,
        **{name: value for name, value in brought_to.items() if value is not None},
    }


def _sha256(file: pathlib.Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("a", None, "The directory of one method's clips.")
    flags.DEFINE_string("b", None, "The directory of the other's.")
    flags.DEFINE_string("prompts", None, "A text file with one prompt per line, in the order of the clips' names.")
    flags.DEFINE_string("pattern", "*.mp4", "Of the clips' names.")
    flags.DEFINE_string("output", "workdir/user_study", "Where votes and encoded clips are.")
    flags.DEFINE_bool("results", False, "Only print the results of the votes in OUTPUT.")
    flags.DEFINE_integer("judgments", None, "Pairs that each rater sees; default: all.", 1)
    flags.DEFINE_integer("check_every", 10, "One attention check among so many pairs; 0: none.", 0)
    flags.DEFINE_float("max_failed", 0.25, "Results: raters who fail a larger share of checks are excluded.", 0.0, 1.0)
    flags.DEFINE_integer("seed", 0, "Of orders, sides and checks.", 0)
    flags.DEFINE_integer("frames", None, "The central frames of each clip; default: all.", 1)
    flags.DEFINE_float("fps", None, "Frames per second, of all clips; default: each clip's own.", 0.0)
    flags.DEFINE_integer("size", None, "Pixels of a side, to which all clips are brought; default: as they are.", 1)
    flags.DEFINE_string("host", "127.0.0.1", "Whom to answer: 127.0.0.1 is this machine, 0.0.0.0 is everybody.")
    flags.DEFINE_integer("port", 8020, "Of the page; 0: a free one.", 0, 65535)


def _serve() -> None:
    if FLAGS["max_failed"].present:
        raise ValueError(f"--max_failed={FLAGS.max_failed} says nothing without --results")
    missing = [name for name in ("a", "b", "prompts") if FLAGS[name].value is None]
    if missing:
        raise ValueError(f"give --{', --'.join(missing)}, or --results: see --help")
    pairs = read_pairs(FLAGS.a, FLAGS.b, FLAGS.prompts, FLAGS.pattern)
    prompts = tuple(pair.prompt for pair in pairs)
    design = Design(prompts, FLAGS.seed, FLAGS.judgments or len(pairs), FLAGS.check_every)
    size = (FLAGS.size, FLAGS.size) if FLAGS.size else None
    study = (pairs, design, pathlib.Path(FLAGS.output), {"a": FLAGS.a, "b": FLAGS.b})
    brought_to = {"frames": FLAGS.frames, "fps": FLAGS.fps, "size": size}
    with open_study(*study, host=FLAGS.host, port=FLAGS.port, **brought_to) as server:
        host, port = server.server_address[:2]
        print(f"open http://{host}:{port} (Ctrl-C ends it; the same command continues)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def _show_results() -> None:
    output = pathlib.Path(FLAGS.output)
    results = study_results(*read_judgments(output / _DATABASE), max_failed=FLAGS.max_failed)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(summary(results))


def main(_argv: list[str]) -> None:
    """Entry point."""
    try:
        if FLAGS.results:
            _show_results()
        else:
            _serve()
    except (ValueError, OSError, sqlite3.Error) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
