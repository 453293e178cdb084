"""What the table of huge pages says of turns that are known, and that there is a place for it."""

import os

from benchmarks import huge_pages
from benchmarks.huge_pages import Turn
from benchmarks.model_sizes import with_tables
from benchmarks.peer_networks import Task

TASK = Task("video", "training_step", "demo", 4, 16, 1, "float32", "cpu", 1)


def test_a_row_has_the_medians_and_the_range_of_the_ratios():
    small = [Turn(0.3, 2000, 0.2), Turn(0.4, 3000, 0.3), Turn(0.2, 1000, 0.1)]
    huge = [Turn(0.2, 20, 0.02), Turn(0.2, 30, 0.03), Turn(0.2, 10, 0.01)]
    row = huge_pages.row(TASK, list(zip(small, huge, strict=True)))
    assert row == "| video training step | 300 | 2,000 | 20 % | 200 | 20 | 2 % | 1.50 x | 1.00–2.00 |"


def test_the_setting_holds_in_the_process_alone():
    with huge_pages._process(huge_pages.TUNABLE) as run:
        assert run(os.getenv, "GLIBC_TUNABLES") == huge_pages.TUNABLE
        assert "GLIBC_TUNABLES" not in os.environ


def test_the_document_has_a_place_for_it():
    assert "a table\n<!-- end -->" in with_tables(huge_pages.DOCUMENT.read_text(), {"huge_pages": "a table"})
