"""The table of slices, from reports."""

from benchmarks.tpu_slices import CASES, table

MEMORY = {"arguments": 2**30, "temporaries": 2**31, "peak": 3 * 2**30}
REPORT = {
    "mesh": {"data": 4, "rows": 4},
    "remat": {"block": "products", "full_blocks": 2},
    "chips": 16,
    "effort": 0.0,
    "fits": True,
    "memory": MEMORY,
    "needed_flops": 2e15,
    "sent": {"all-gather": 3e9, "all-reduce": 1e9},
    "seconds_a_step": 1.2,
    "seconds_with_communication": 1.25,
    "utilisation": 0.4567,
}


def test_a_row_a_report():
    train = next(case for case in CASES if case.name == "train-if_m-v5e:4x4")
    row = table({train.name: REPORT}).splitlines()[2]
    # 30M clips, four in 1.2 s, on 16 chips.
    days = 30e6 / 4 * 1.2 / 86400
    expected = [
        "train `if_m`",
        "v5e:4x4",
        "4 × 4",
        "4",
        "products, the first 2 full",
        "3.0",
        "2,000",
        "4.0",
        "1.20",
        "1.25",
        "46 %",
    ]
    assert row == f"| {' | '.join([*expected, f'{days:.1f}', f'{days * 24 * 16:,.0f}', '0'])} |"
    quick = table({train.name: REPORT | {"effort": -1.0}}).splitlines()[2]
    assert quick == f"| {' | '.join([*expected[:8], *['—'] * 5, '-1'])} |"


def test_what_does_not_fit_says_by_how_much():
    missing = {"needed": 17 * 2**30, "available": 16 * 2**30, "missing": 2**30}
    row = table({"train-if_l-v5e:2x2": REPORT | {"fits": False, "memory": missing}}).splitlines()[2]
    assert "| does not fit: 1.00 missing | — |" in row


def test_every_case_has_a_name_of_its_own():
    assert len({case.name for case in CASES}) == len(CASES)
