"""The state of the data is the step: any number of hosts makes the same global batches, from any step on."""

import itertools
import pathlib

from one_of_several_loaders import batches, digest
from processes import run_processes


def test_a_resume_on_another_number_of_hosts_gives_the_same_global_batches():
    whole = [digest(batch) for batch in itertools.islice(batches(0), 12)]
    assert len(set(whole)) == 12  # over several epochs of both data sets
    assert {line.split(")")[0] for line in whole} == {"batch (8, 1, 8, 8, 3", "batch (4, 3, 8, 8, 3"}
    file = pathlib.Path(__file__).with_name("one_of_several_loaders.py")
    for count, first_step, steps in ((1, 0, 4), (2, 3, 5), (4, 7, 5)):
        for lines in run_processes(file, str(first_step), str(steps), count=count, devices=4 // count):
            assert lines == whole[first_step : first_step + steps]
