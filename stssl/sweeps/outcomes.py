"""Read from a run's folder how it ended."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stssl.training.run_folder import RunFolder

HEADLINES = ("mAP", "accuracy")


@dataclass(frozen=True)
class Outcome:
    """Scores of a run's best checkpoint.

    Attributes:
        names: Of the scores.
        values: Of the scores.
        step: Of the checkpoint.
        last: The last step that was validated.
        finished: Whether the run went to its end.
        scores: All scores of that validation.
    """

    names: tuple[str, ...]
    values: list[float]
    step: int
    last: int
    finished: bool
    scores: dict[str, float]


def scored(row: dict[str, Any]) -> dict[str, Any]:
    """A validation's row with `score`, that which chooses the best checkpoint; without scores that are missing."""
    known = {name: value for name, value in row.items() if value is not None}
    headline = next((known[name] for name in HEADLINES if name in known), None)
    return known if headline is None else known | {"score": headline}


def outcome(folder: Path, metrics: tuple[str, ...]) -> Outcome | None:
    """Scores of the best checkpoint of a run; None before its first validation, or where that has not all `metrics`.

    A score that is no number (no class has a positive, say) is missing from the run's rows.
    """
    run = RunFolder(folder)
    best: dict[str, Any] | None = None
    last = 0
    for row in run.rows():
        if row["kind"] != "validation":
            continue
        last, known = max(last, row["step"]), scored(row)
        # The first of equals, as the run itself keeps its best checkpoint.
        if "score" in known and (best is None or known["score"] > best["score"]):
            best = known
    if best is None or any(name not in best for name in metrics):
        return None
    scores = {name: value for name, value in best.items() if name not in ("step", "kind")}
    return Outcome(
        names=metrics,
        values=[float(scores[name]) for name in metrics],
        step=int(best["step"]),
        last=last,
        finished=run.finished() is not None,
        scores=scores,
    )
