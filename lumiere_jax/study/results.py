"""What a study found: how often method A is preferred, how sure that is, and how far raters agree."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lumiere_jax.evaluation.bootstrap import bootstrap_interval
from lumiere_jax.evaluation.intervals import wilson
from lumiere_jax.study.agreement import krippendorff_alpha, pairwise_agreement
from lumiere_jax.study.votes import Judgment

QUESTIONS = ("quality", "text")


def study_results(
    facts: Mapping[str, Any], methods: Mapping[str, str], judgments: Sequence[Judgment], *, max_failed: float
) -> dict[str, Any]:
    """The results, without raters who do not look, and with all.

    Args:
      facts, methods, judgments: as `read_judgments` returns them.
      max_failed: a rater who fails more than this share of the attention checks is excluded.

    Returns:
      `study`, `methods`, `raters`, and by question what `attentive raters` and `all raters` said. JSON.
    """
    raters = {judgment.rater for judgment in judgments}
    excluded = inattentive(judgments, max_failed)
    checked = {judgment.rater for judgment in judgments if judgment.trial.is_check}
    votes = [judgment for judgment in judgments if not judgment.trial.is_check]
    kept = [judgment for judgment in votes if judgment.rater not in excluded]
    return {
        "study": dict(facts),
        "methods": dict(methods),
        "raters": {
            "all": len(raters),
            "excluded": len(excluded),
            "without an attention check": len(raters - checked),
            "excluded above a share of failed checks of": max_failed,
        },
        "attentive raters": {question: preference(kept, question) for question in QUESTIONS},
        "all raters": {question: preference(votes, question) for question in QUESTIONS},
    }


def inattentive(judgments: Sequence[Judgment], max_failed: float) -> set[str]:
    """Raters who preferred the damaged clip in more than this share of their checks; the text question has no check."""
    passed: dict[str, list[bool]] = {}
    for judgment in judgments:
        if judgment.trial.is_check:
            passed.setdefault(judgment.rater, []).append(judgment.chose_first("quality"))
    return {rater for rater, answers in passed.items() if answers.count(False) > max_failed * len(answers)}


def preference(judgments: Sequence[Judgment], question: str) -> dict[str, Any]:
    """What raters prefer by a question.

    Args:
      judgments: without checks.
      question: "quality" or "text".

    Returns:
      `prefers_a`: a share, with Wilson's interval from `low` to `high`, of `judgments` that count as independent;
      `over_prompts` and `over_raters`: intervals of the bootstrap for other prompts, and for other raters, who each
      answer more than once; `agreement`: Krippendorff's alpha and the share of pairs of raters that agree; and
      `chose_left`, which is one half but for chance. None: not known.
    """
    for_a = np.array([judgment.chose_first(question) for judgment in judgments], bool)
    low, high = wilson(int(for_a.sum()), len(for_a))
    pairs = [judgment.trial.pair for judgment in judgments]
    left = [getattr(judgment, question) == "left" for judgment in judgments]
    by_pair, by_rater = _counts(pairs, for_a), _counts([judgment.rater for judgment in judgments], for_a)
    return {
        "prefers_a": float(for_a.mean()) if len(for_a) else None,
        "low": low,
        "high": high,
        "judgments": len(for_a),
        "raters": len(by_rater),
        "pairs": len(by_pair),
        "over_prompts": _interval(by_pair),
        "over_raters": _interval(by_rater),
        "agreement": {
            "alpha": _if_known(krippendorff_alpha(by_pair)),
            "pairs_of_raters": _if_known(pairwise_agreement(by_pair)),
        },
        "chose_left": {"share": float(np.mean(left)), "interval": wilson(sum(left), len(left))} if left else None,
    }


def _counts(groups: Sequence[str] | Sequence[int], for_a: np.ndarray) -> np.ndarray:
    """[groups, 2]: of each group how many judgments are for B, and for A."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    counts = np.zeros((len(numbers), 2), np.int64)
    np.add.at(counts, ([numbers[group] for group in groups], for_a.astype(int)), 1)
    return counts


def _interval(counts: np.ndarray) -> list[float] | None:
    if len(counts) < 2:
        return None

    def share(chosen: np.ndarray) -> float:
        return float(counts[chosen, 1].sum() / counts[chosen].sum())

    return list(bootstrap_interval(share, len(counts)))


def _if_known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summary(results: Mapping[str, Any]) -> str:
    """The results for people."""
    raters, methods = results["raters"], results["methods"]
    lines = [
        f"A: {methods['a']}",
        f"B: {methods['b']}",
        f"{raters['all']} raters, of whom {raters['excluded']} failed attention checks and are excluded, and "
        f"{raters['without an attention check']} came to none",
    ]
    for who in ("attentive raters", "all raters"):
        lines += ["", f"{who}:", *(_line(question, results[who][question]) for question in QUESTIONS)]
    return "\n".join(lines)


def _line(question: str, found: Mapping[str, Any]) -> str:
    if not found["judgments"]:
        return f"  {question:8} no judgments"
    intervals = [("Wilson", (found["low"], found["high"]))]
    intervals += [(name.replace("_", " "), found[name]) for name in ("over_prompts", "over_raters") if found[name]]
    told = "; ".join(f"{name} {low:.1%} to {high:.1%}" for name, (low, high) in intervals)
    agreement = {name: "unknown" if value is None else f"{value:.2f}" for name, value in found["agreement"].items()}
    return (
        f"  {question:8} A is preferred in {found['prefers_a']:.1%} of {found['judgments']} judgments ({told}); "
        f"alpha {agreement['alpha']}, {agreement['pairs_of_raters']} of pairs of raters agree; left chosen in "
        f"{found['chose_left']['share']:.1%}"
    )
