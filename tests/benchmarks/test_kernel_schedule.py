"""Reading a kernel's schedule."""

import pytest

from benchmarks.kernel_schedule import bundles_of_loop, fit

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


def test_fit_of_cycles():
    """What is made of two units is found again; one measurement that is a tenth too long is the largest error."""
    work = [{"values": values, "taps": taps} for values, taps in ((1, 3), (2, 2), (1e6, 5e6))]
    cycles = [2.0 * each["values"] + 0.5 * each["taps"] for each in work]
    of_unit, error = fit(work, cycles)
    assert of_unit == pytest.approx({"values": 2.0, "taps": 0.5})
    assert error < 1e-12
    _, error = fit([*work * 10, work[0]], [*cycles * 10, 1.1 * cycles[0]])
    assert 0.05 < error < 0.1
