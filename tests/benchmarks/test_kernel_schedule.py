"""Reading a kernel's schedule."""

import pytest

from benchmarks.kernel_schedule import bundles_of_loop

SCHEDULE = """LB: loop body
     0   :  { %s1 = smov 4 }
  0x1f LB: > { %s2 = sadd %s1 }
  0x4f   : > { %s3 = smul %s2 }
  0x9f   : > { %p1 = scmp.ge.s32 %s3, 122 /* loop exit test */ }
  0xa0   :  { sbr.rel %p1 }
"""


def test_bundles_of_one_turn():
    assert bundles_of_loop(SCHEDULE) == 0x9F - 0x1F


@pytest.mark.parametrize("schedule", [SCHEDULE + SCHEDULE, "", SCHEDULE.replace("exit test", "test")])
def test_what_is_not_one_loop(schedule):
    with pytest.raises(ValueError, match="where one of each is read"):
        bundles_of_loop(schedule)
