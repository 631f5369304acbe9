"""Say in three sentences what a study of metadata under shift found: one for each claim, with numbers and intervals."""

from collections.abc import Sequence

from stssl.scoring.metrics import LOWER_IS_BETTER
from stssl.shifts.effects import CLAIMS, ShiftEffect

QUESTIONS = dict(
    zip(
        CLAIMS,
        (
            "Are pseudo-labels better with metadata?",
            "Does metadata at test harm under shift?",
            "Does the student gain?",
        ),
        strict=True,
    )
)
"""Question of each claim."""
COMPARED = dict(
    zip(
        CLAIMS,
        (
            "The teacher that sees metadata against the teacher of the control, on unlabeled training patches",
            "A network that sees true metadata at test against the teacher of the control, on test patches",
            "The student against the student of the control, on test patches",
        ),
        strict=True,
    )
)
"""What each claim compares."""
WORDS = {
    CLAIMS[0]: ("better", "worse"),
    CLAIMS[1]: ("helps", "harms"),
    CLAIMS[2]: ("gains", "loses"),
}
"""What a positive and a negative difference are called."""


def claim_sentences(effects: Sequence[ShiftEffect]) -> dict[str, str]:
    """Write for each of a study's three claims a sentence that says what its comparisons show on each split.

    Args:
        effects: Comparisons of networks in the study.

    Returns:
        Sentences by claim. A sentence calls a network better or worse only if `ShiftEffect.shown` is true.
    """
    return {claim: _sentence(claim, [one for one in effects if one.claim == claim]) for claim in CLAIMS}


def _sentence(claim: str, effects: Sequence[ShiftEffect]) -> str:
    if not effects:
        return f"{COMPARED[claim]}: nothing could be compared."
    better, worse = WORDS[claim]
    named: dict[str, list[str]] = {}
    for one in effects:
        if one.low is None:
            verdict = "no interval"
        elif one.shown:
            verdict = better if one.difference > 0 else worse
        else:
            verdict = "no difference shown"
        where = f"{one.split}{' (not shifted)' if one.inside and claim == CLAIMS[1] else ''}"
        named.setdefault(verdict, []).append(f"{where} {points(one)}")
    order = (better, worse, "no difference shown", "no interval")
    parts = [f"{verdict} on {', '.join(named[verdict])}" for verdict in order if verdict in named]
    seeds, score = max(one.seeds for one in effects), effects[0].score
    unit = f"{points_unit(score)}, {'one seed: no interval' if seeds == 1 else f'95 % intervals, {seeds} seeds'}"
    return f"{COMPARED[claim]}: {'; '.join(parts)} ({unit})."


def points_unit(score: str) -> str:
    """Name the unit of differences of a score: hundredths. If less is better, say that plus still means better."""
    return f"points of {score}{', where less is better and counts as plus' if score in LOWER_IS_BETTER else ''}"


def points(effect: ShiftEffect) -> str:
    """Return as text the difference between two networks in points (hundredths of the score), with its interval."""
    ends = (
        "" if effect.low is None or effect.high is None else f" ({100 * effect.low:+.1f} to {100 * effect.high:+.1f})"
    )
    return f"{100 * effect.difference:+.1f}{ends}"
