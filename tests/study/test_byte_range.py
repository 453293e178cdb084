"""HTTP's byte ranges."""

import pytest

from lumiere_jax.study.byte_range import byte_range


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=3-5", (3, 6)),
        ("bytes=9-", (9, 10)),
        ("bytes=3-99", (3, 10)),
        ("bytes=-4", (6, 10)),
        ("bytes=-99", (0, 10)),
        # Not understood, or several at once: the whole file.
        ("bytes=-", None),
        ("bytes=5-3", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=٣-٥", None),
    ],
)
def test_parts(header, part):
    assert byte_range(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_nothing_there(header):
    with pytest.raises(ValueError, match="of 10 bytes"):
        byte_range(header, 10)
