"""Read back the files that runs keep: each must be of the kind this program writes, or an error names it."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stssl.base.errors import RunError, shown
from stssl.base.textfiles import read_bounded, read_json
from stssl.base.whole_files import is_there

ROWS_BYTES = 1 << 30
"""What a file of rows may hold: those of a hundred million steps."""
MOST = 2**53
"""Whole numbers up to here are exact wherever figures put them."""
Count = Annotated[int, Field(ge=0, le=MOST)]
Score = Annotated[float, Field(ge=-1e300, le=1e300)] | None


class Kept(BaseModel):
    """A part of a file that must be there; what else the file has is let through."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


class Done(Kept):
    """`done.json`: how a run ended."""

    steps: Count = 0
    best: Score = None
    best_step: Count = 0


class Mark(Kept):
    """Hold what tells a store from others."""

    fingerprint: str


class Start(Kept):
    """One start of a run; its step is only shown."""

    step: Any


class Record(Kept):
    """`record.json`: what produced a run. Values of the kind Any are only shown."""

    store: Mark
    starts: list[Start] = []
    parts: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    labeled: Any = None
    seed: Any = None
    ranks: Any = None
    commit: Any = None


class NetworkScores(Kept):
    """Scores of one network, and of each class."""

    scores: Annotated[dict[str, Score], Field(min_length=1)]
    per_class: Annotated[dict[str, dict[str, Score]], Field(min_length=1)]

    @property
    def multilabel(self) -> bool:
        """True if a patch may have several classes."""
        return "mAP" in self.scores

    @model_validator(mode="after")
    def _classes_have_what_is_drawn(self) -> "NetworkScores":
        needed = ("count", "AP" if "mAP" in self.scores else "recall")
        for name, scores in self.per_class.items():
            for key in needed:
                if key not in scores:
                    raise ValueError(f"per_class.{name} has no {key}")
        return self


class Scored(Kept):
    """`evaluation/<part>.json`: scores of a run's networks on a part of its split."""

    patches: Count
    checkpoint: str
    step: Count
    networks: Annotated[dict[str, NetworkScores], Field(min_length=1)]
    arrays: str | None = None

    @model_validator(mode="after")
    def _networks_have_the_same_classes(self) -> "Scored":
        if "student" not in self.networks:
            raise ValueError("networks has no student")
        student = self.networks["student"]
        for name, network in self.networks.items():
            if list(network.per_class) != list(student.per_class) or ("mAP" in network.scores) != student.multilabel:
                raise ValueError(f"networks.{name} has other classes or scores than the student")
        return self

    @property
    def student(self) -> dict[str, Score]:
        """Scores of the student, who is always there."""
        return self.networks["student"].scores


class Tried(Kept):
    """One candidate of a confirmation."""

    name: str
    validation: Annotated[dict[str, list[float]], Field(min_length=1)]
    test: dict[str, list[float]]
    failed: Count = 0


class Look(Kept):
    """Record when test was evaluated, and for which runs."""

    time: str
    runs: list[str]


class Confirmed(Kept):
    """`confirmation.json` of a sweep."""

    seeds: list[Count]
    candidates: Annotated[list[Tried], Field(min_length=1)]
    looks: list[Look]


class Probe(Kept):
    """One row of a probe."""

    weights: str
    method: str
    labels: str
    labeled: Count
    test: dict[str, Score]


class Probes(Kept):
    """`probe/<weights>-s<seed>.json`."""

    rows: list[Probe]


K = TypeVar("K", bound=Kept)


def read_kept(kind: type[K], path: Path, advice: str) -> tuple[K, dict[str, Any]]:
    """Read a JSON file, checked and as it stands there.

    Args:
        kind: What it must hold.
        path: The file.
        advice: What to do where it does not, a sentence.

    Raises:
        RunError: It cannot be read, is cut off, or holds something else; names the file and the key.
    """
    tree: dict[str, Any] = read_json(path, error=RunError, advice=advice)
    return checked(kind, tree, path, advice), tree


def checked(kind: type[K], tree: dict[str, Any], path: Path, advice: str) -> K:
    """A tree of a file as what it must hold.

    Raises:
        RunError: It holds something else; names the file and the key.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = shown(".".join(str(part) for part in problem["loc"]) or "the file")
        raise RunError(f"{path} is damaged: {key}: {shown(problem['msg'])}. {advice}") from None


def read_rows(path: Path, numbers: bool) -> tuple[list[dict[str, Any]], int]:
    """Rows of a file with one JSON object a line, and how many lines are none.

    Args:
        path: The file; one that is not there has no rows.
        numbers: Whether all of a row but its kind must be numbers or null; then other values are left out of it.

    Raises:
        RunError: It cannot be read.
    """
    if not is_there(path):
        return [], 0
    data = read_bounded(path, ROWS_BYTES, RunError, "Remove it: the run goes on without its earlier rows.")
    found, damaged = [], 0
    for line in data.split(b"\n"):
        if line.strip():
            row = _row(line)
            if row is None or (numbers and not isinstance(row.setdefault("kind", ""), str)):
                damaged += 1
            else:
                found.append({name: value for name, value in row.items() if _plain(name, value)} if numbers else row)
    return found, damaged


def _row(line: bytes) -> dict[str, Any] | None:
    """A line's object, if it is one that tells its step."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nobody's JSON
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and not isinstance(step, bool) and 0 <= step <= MOST else None


def _plain(name: str, value: Any) -> bool:
    if name == "kind" or value is None:
        return True
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (math.isfinite(value) and abs(value) <= 1e300 if isinstance(value, float) else abs(value) <= MOST)
    )
