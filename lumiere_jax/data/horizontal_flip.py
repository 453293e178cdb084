"""Which clips may be mirrored: those whose captions stay true. None of this is from the paper."""

import re

# What a mirror turns into its opposite, by whole words:
_MIRRORED = (
    r"left\w*",  # left, leftmost, leftwards, left-handed
    r"right(?!eous)\w*",  # also "right now": refusing one mirror image too many costs nothing
    r"(?:anti|counter)?-?clock-?wise",
    r"clocks?",  # their hands and digits
    r"(?:north|south)?-?(?:east|west)\w*",  # on maps and at sunset alike
    r"starboard",
    # Writing becomes unreadable.
    r"text\w*",
    r"words?",
    r"letters?",
    r"handwrit\w*",
    r"writ(?:e|es|ing|ten)",
    r"numbers?",
    r"digits?",
    r"captions?",
    r"subtitles?",
    r"titles?",
    r"logos?",
    r"signs?",
    r"says",
    r"reads",
)
_PATTERN = re.compile(r"\b(?:" + "|".join(_MIRRORED) + r")\b", re.IGNORECASE)


def may_flip(caption: str) -> bool:
    """Whether a clip and its mirror image are both what the caption says: it names no side, turn, or writing.

    English only. A word list errs both ways: "the sun rises" says nothing of a side, "a right answer" does.
    """
    return _PATTERN.search(caption) is None
