"""How a run ended, read off its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stssl.errors import ConfigError
from stssl.train.folder import RunFolder

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


def outcome(folder: Path, metrics: tuple[str, ...]) -> Outcome | None:
    """Scores of the best checkpoint of a run; None before its first validation.

    Raises:
        ConfigError: A metric is none that the run has; names those it has.
    """
    run = RunFolder(folder)
    best: dict[str, Any] | None = None
    last = 0
    for row in run.rows():
        if row["kind"] != "validation":
            continue
        last = max(last, row["step"])
        row["score"] = next((row[name] for name in HEADLINES if row.get(name) is not None), None)
        # The first of equals, as the run itself keeps its best checkpoint.
        if row["score"] is not None and (best is None or row["score"] > best["score"]):
            best = row
    if best is None:
        return None
    scores = {name: value for name, value in best.items() if name not in ("step", "kind") and value is not None}
    missing = [name for name in metrics if name not in scores]
    if missing:
        raise ConfigError(f"metric: no {', '.join(missing)} among the scores of {folder}: {', '.join(scores)}")
    return Outcome(
        names=metrics,
        values=[float(scores[name]) for name in metrics],
        step=int(best["step"]),
        last=last,
        finished=run.finished() is not None,
        scores=scores,
    )
