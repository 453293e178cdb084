"""What a rater sees: which pair, on which side the clip of method A is, and when it is an attention check.

Everything is drawn from the study's seed and the rater, so that a reload or a restart changes nothing; which of the
pairs with equally few judgments comes next also depends on what other raters have seen by then.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Design:
    """How a study is made up.

    Attributes:
      prompts: one for each pair.
      seed: of all draws.
      judgments: pairs that each rater sees.
      check_every: pairs for each of which there is one attention check, at a random place among them; 0: none.
    """

    prompts: tuple[str, ...]
    seed: int
    judgments: int
    check_every: int

    def __post_init__(self):
        if not 1 <= self.judgments <= len(self.prompts):
            raise ValueError(f"judgments={self.judgments}: give 1 to {len(self.prompts)}, the number of pairs")
        if self.check_every < 0 or self.seed < 0:
            raise ValueError(f"check_every={self.check_every}, seed={self.seed}: neither may be below 0")

    @property
    def checks(self) -> int:
        """Attention checks that each rater sees."""
        return -(-self.judgments // self.check_every) if self.check_every else 0

    def checked_pairs(self) -> list[int]:
        """The pairs of which a clip is damaged for the checks, the same for all raters."""
        return np.random.default_rng(self.seed).permutation(len(self.prompts))[: self.checks].tolist()


class Slot(NamedTuple):
    """One of the trials of a rater.

    Attributes:
      is_check: whether it is an attention check.
      first_left: whether the first clip is on the left: that of method A, or of a check the whole one.
    """

    is_check: bool
    first_left: bool


class Plan(NamedTuple):
    """What is drawn for a rater.

    Attributes:
      slots: the trials.
      order: of all pairs: which comes first of those with equally few judgments.
      checks: the pairs of the checks.
    """

    slots: list[Slot]
    order: list[int]
    checks: list[int]


def plan_of(design: Design, rater: str) -> Plan:
    """What is drawn for a rater, whose name is a hexadecimal number."""
    rng = np.random.default_rng([design.seed, int(rater, 16)])
    order, checks = rng.permutation(len(design.prompts)), rng.permutation(design.checked_pairs())
    kinds: list[bool] = []
    for first in range(0, design.judgments, design.check_every or design.judgments):
        block = [False] * min(design.check_every or design.judgments, design.judgments - first)
        if design.check_every:
            block.insert(int(rng.integers(len(block) + 1)), True)
        kinds += block
    sides = {is_check: iter(_balanced(kinds.count(is_check), rng)) for is_check in (False, True)}
    return Plan([Slot(is_check, next(sides[is_check])) for is_check in kinds], order.tolist(), checks.tolist())


def _balanced(count: int, rng: np.random.Generator) -> list[bool]:
    """As many of one as of the other, or one more of either, in any order."""
    return rng.permutation((np.arange(count) + rng.integers(2)) % 2 == 0).tolist()


def next_pair(order: Sequence[int], seen: Collection[int], times_seen: Mapping[int, int]) -> int:
    """The pair that was seen least by all raters, of those that this one has not seen yet."""
    return min((pair for pair in order if pair not in seen), key=lambda pair: times_seen.get(pair, 0))
