"""The history of a run: what a resume keeps, what it cuts off."""

import json
import math

import pytest

from lumiere_jax.train_history import History, curve


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def written(directory, *steps):
    history = History(directory, 0)
    for step in steps:
        history.append(step, {"train/loss": step / 10})


def test_a_resume_cuts_back_to_its_step_and_goes_on(tmp_path):
    written(tmp_path, 2, 4, 4, 6)
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    history = History(tmp_path, 4)
    assert curve(history.records, "train/loss") == ([2, 4, 4], [0.2, 0.4, 0.4])
    history.append(5, {"train/loss": 7.0})
    after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert after[:3] == before[:3]
    assert [record["step"] for record in lines(tmp_path)] == [2, 4, 4, 5]
    assert curve(History(tmp_path, 5).records, "train/loss")[1] == [0.2, 0.4, 0.4, 7.0]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("torn", ['{"step": 6, "train/lo', '{"step": 6}', "{", "\0\0\0"])
def test_a_last_line_that_was_half_written_is_cut_off(tmp_path, torn):
    """Even where it could be read: without its newline nothing says that it is whole."""
    written(tmp_path, 2, 4)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + torn)
    history = History(tmp_path, 10)
    assert file.read_text() == whole
    history.append(7, {})
    assert [record["step"] for record in lines(tmp_path)] == [2, 4, 7]


def test_a_record_is_on_disk_at_once(tmp_path):
    history = History(tmp_path / "new" / "run", 0)
    history.append(1, {"train/loss": 0.5})
    (record,) = lines(tmp_path / "new" / "run")
    assert record == {"step": 1, "time": record["time"], "train/loss": 0.5}


def test_what_is_not_finite_is_null_and_comes_back(tmp_path):
    history = History(tmp_path, 0)
    history.append(1, {"a": math.nan, "b": math.inf})
    assert lines(tmp_path)[0]["a"] is None
    (record,) = History(tmp_path, 1).records
    assert math.isnan(record["a"])
    assert math.isnan(record["b"])


@pytest.mark.parametrize("line", ["what is this", "[1, 2]", '{"loss": 1}', "3"])
def test_another_line_that_is_no_record_is_an_error(tmp_path, line):
    written(tmp_path, 2)
    file = tmp_path / "metrics.jsonl"
    file.write_text(f"{line}\n" + file.read_text())
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1 is not a record: .* delete that line"):
        History(tmp_path, 2)
    assert file.read_text().startswith(line)
