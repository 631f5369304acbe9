"""Define the JSON files of a run folder, and check them when they are read.

Each class lists the keys that a file must have. If a key is missing, the file is damaged or another program wrote it.
The error then names the file and the key.
"""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stssl import __version__
from stssl.base.errors import RunError, shown
from stssl.base.json_types import JsonMapping, JsonObject, JsonValue
from stssl.base.textfiles import read_bounded, read_json
from stssl.base.whole_files import is_there, open_plain

METRICS_FILE = "metrics.jsonl"
NONFINITE_FILE = "nonfinite.jsonl"
ROWS_BYTES = 1 << 30
"""Largest size in bytes of a file of rows that is read. A hundred million steps need less."""
MOST = 2**53
"""Largest whole number that a run's files may hold: figures draw floats, which are exact up to here."""
OLDEST_READABLE = (0, 2)
"""Oldest release, as (major, minor), that wrote run folders and checkpoints this release can read."""
Count = Annotated[int, Field(ge=0, le=MOST)]
Score = Annotated[float, Field(ge=-1e300, le=1e300)] | None

MetricsRow = dict[str, Any]
"""One row of metrics: `step`, `kind` (`train` or `validation`), and a number or None by each metric's name."""


class RunFile(BaseModel):
    """Check that a JSON file, or a part of it, has the keys of the subclass. Other keys are kept without a check."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


class RunEnd(TypedDict):
    """Describe how a run ended: number of steps taken, best validation score, and step of the best score."""

    steps: int
    best: float | None
    best_step: int


class DoneFile(RunFile):
    """List the keys of `done.json`, which says how a run ended: number of steps, best score, and step of that score."""

    steps: Count = 0
    best: Score = None
    best_step: Count = 0


class StoreMark(RunFile):
    """Describe the store in a run's record by its fingerprint, which changes if its patches or labels change."""

    fingerprint: str


class RunStart(RunFile):
    """Describe one start or resume of a run: the number of steps taken before it.

    Any value is accepted, because reports only show the number.
    """

    step: JsonValue


class RecordFile(RunFile):
    """List the keys of `record.json`, which says what produced a run (data, versions, starts)."""

    store: StoreMark
    starts: list[RunStart] = []
    parts: JsonObject = {}
    versions: JsonObject = {}
    labeled: JsonValue = None
    seed: JsonValue = None
    ranks: JsonValue = None
    precision: JsonValue = None
    commit: JsonValue = None


class NetworkScores(RunFile):
    """List the keys with the scores of one network: over all classes, and for each class."""

    scores: Annotated[dict[str, Score], Field(min_length=1)]
    per_class: Annotated[dict[str, dict[str, Score]], Field(min_length=1)]

    @property
    def multilabel(self) -> bool:
        """Return True if the scores are of a multi-label task, where a patch may have several classes."""
        return "mAP" in self.scores

    @model_validator(mode="after")
    def _classes_have_what_is_drawn(self) -> "NetworkScores":
        needed = ("count", "AP" if "mAP" in self.scores else "recall")
        for name, scores in self.per_class.items():
            for key in needed:
                if key not in scores:
                    raise ValueError(f"per_class.{name} has no {key}")
        return self


class ScoresFile(RunFile):
    """List the keys of `evaluation/<part>.json`: scores of a run's networks on a part of the data, such as `test`."""

    patches: Count
    checkpoint: str
    step: Count
    networks: Annotated[dict[str, NetworkScores], Field(min_length=1)]
    arrays: str | None = None

    @model_validator(mode="after")
    def _networks_have_the_same_classes(self) -> "ScoresFile":
        if "student" not in self.networks:
            raise ValueError("networks has no student")
        student = self.networks["student"]
        for name, network in self.networks.items():
            if list(network.per_class) != list(student.per_class) or ("mAP" in network.scores) != student.multilabel:
                raise ValueError(f"networks.{name} has other classes or scores than the student")
        return self

    @property
    def student(self) -> dict[str, Score]:
        """Return the scores of the student network by name. A score that is not defined is None."""
        return self.networks["student"].scores


class ConfirmedCandidate(RunFile):
    """List the keys about one of a sweep's best recipes, which was trained again: its scores, one for each seed."""

    name: str
    validation: Annotated[dict[str, list[float]], Field(min_length=1)]
    test: dict[str, list[float]]
    failed: Count = 0


class TestEvaluation(RunFile):
    """List the keys about one evaluation on the test patches: its time, and the names of the recipes evaluated."""

    time: str
    runs: list[str]


class ConfirmationFile(RunFile):
    """List the keys of a sweep's `confirmation.json`: scores of its best recipes, trained again with other seeds."""

    seeds: list[Count]
    candidates: Annotated[list[ConfirmedCandidate], Field(min_length=1)]
    looks: list[TestEvaluation]


class ProbeRow(RunFile):
    """List the keys about one probe of a pretrained encoder: test scores by one method with one number of labels."""

    weights: str
    method: str
    labels: str
    labeled: Count
    test: dict[str, Score]


class ProbeFile(RunFile):
    """List the keys of `probe/<weights>-s<seed>.json`, which has all probes of one pretrained encoder and seed."""

    rows: list[ProbeRow]


K = TypeVar("K", bound=RunFile)


def read_run_file(kind: type[K], path: Path, advice: str) -> tuple[K, dict[str, Any]]:
    """Read a JSON file of a run, and check that it has the keys it must have.

    Args:
        kind: Class that lists the file's keys.
        path: Path of the file.
        advice: Sentence that says what to do. It ends the message of an error.

    Returns:
        An object of `kind` with the checked keys, and the whole file as plain values.

    Raises:
        RunError: The file cannot be read, is cut off, or lacks a key. The message names the file and the key.
    """
    tree: dict[str, Any] = read_json(path, error=RunError, advice=advice)
    return check_run_file(kind, tree, path, advice), tree


def check_run_file(kind: type[K], tree: JsonMapping, path: Path, advice: str) -> K:
    """Check that the values read from a file of a run have all keys that the file must have. Return them as a `kind`.

    Args:
        kind: Class that lists the file's keys.
        tree: Values of the file.
        path: Path of the file, for messages.
        advice: Sentence that says what to do. It ends the message of an error.

    Raises:
        RunError: A key is missing or has a wrong value. The message names the file and the key.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = shown(".".join(str(part) for part in problem["loc"]) or "the file")
        raise RunError(f"{path} is damaged: {key}: {shown(problem['msg'])}. {advice}") from None


class Rows(NamedTuple):
    """Describe what was read of a file with a JSON object in each line: valid rows, and number of damaged lines."""

    rows: list[MetricsRow]
    damaged: int


def read_rows(path: Path, numbers: bool) -> Rows:
    """Read a file with one JSON object in each line, and return its valid rows and its number of damaged lines.

    A missing file has no rows. A line is damaged if it is not a JSON object with a step. For example, a kill can cut
    off the last line.

    Args:
        path: Path of the file.
        numbers: True to keep in rows only `kind`, numbers and None. A line is then also damaged if its `kind` is not
            text.

    Raises:
        RunError: The file cannot be read.
    """
    if not is_there(path):
        return Rows([], 0)
    data = read_bounded(path, ROWS_BYTES, RunError, "Remove it: the run continues without its earlier rows.")
    return _parse(data, numbers)


def _parse(data: bytes, numbers: bool) -> Rows:
    """Parse `data`, lines with one JSON object each. Return the valid rows and the number of damaged lines.

    If `numbers` is True, rows keep only `kind`, numbers and None, and a line with a `kind` that is not text is damaged.
    """
    found: list[MetricsRow] = []
    damaged = 0
    for line in data.split(b"\n"):
        if line.strip():
            row = _row(line)
            if row is None or (numbers and not isinstance(row.setdefault("kind", ""), str)):
                damaged += 1
            else:
                metrics = {name: value for name, value in row.items() if _is_metric(name, value)}
                found.append(metrics if numbers else row)
    return Rows(found, damaged)


class NewRows:
    """Read the rows that a run adds to `metrics.jsonl`.

    Each call reads only the rows that earlier calls did not read.
    """

    def __init__(self, path: Path) -> None:
        """Store the path of the file, which may not exist yet."""
        self.path = path
        self._given, self._offset, self._inode = 0, 0, -1

    def take(self) -> list[MetricsRow]:
        """Return the rows that were added since the last call. An incomplete last line is left for a later call.

        A resumed run replaces the file by one without the rows after its checkpoint. After such a replacement,
        this method reads the file from its start, and skips as many rows as earlier calls returned.

        Raises:
            RunError: The file cannot be read.
        """
        if not is_there(self.path):
            return []
        try:
            with open_plain(self.path) as file:
                about = os.fstat(file.fileno())
                same = about.st_ino == self._inode and about.st_size >= self._offset
                start = file.seek(self._offset if same else 0)
                data = file.read(min(ROWS_BYTES, about.st_size - start))
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror or type(error).__name__}") from None
        whole = data[: data.rfind(b"\n") + 1]
        rows = _parse(whole, numbers=True).rows
        # Skip no more rows than the file has: after a replacement, it may have fewer rows than were returned already.
        fresh = rows if same else rows[min(self._given, len(rows)) :]
        self._given = len(rows) + (self._given if same else 0)
        self._offset, self._inode = len(whole) + (self._offset if same else 0), about.st_ino
        return fresh


def _row(line: bytes) -> MetricsRow | None:
    """Parse one line of a file of rows, and return the row. Return None if it is no JSON object or has no step."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or JSON nested too deep
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if isinstance(step, int) and not isinstance(step, bool) and 0 <= step <= MOST else None


def _is_metric(name: str, value: object) -> bool:
    """Return True if a row of metrics may have `value` under the key `name`.

    It may if the key is `kind`, or if the value is None or a finite number that a figure can draw.
    """
    if name == "kind" or value is None:
        return True
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (math.isfinite(value) and abs(value) <= 1e300 if isinstance(value, float) else abs(value) <= MOST)
    )


def version_problem(what: str, version: object) -> str | None:
    """Return an error message if a run folder or checkpoint was written by a release that is too old to read.

    Args:
        what: Name of the folder or file, for the message.
        version: Version of stssl that wrote the folder or file. A value that is not a version passes the check.

    Returns:
        Message with the version that wrote it, and what to do; None if this release can read it.
    """
    parts = version.split(".")[:2] if isinstance(version, str) else []
    if len(parts) < 2 or not all(part.isdecimal() for part in parts):
        return None
    if (int(parts[0]), int(parts[1])) >= OLDEST_READABLE:
        return None
    return (
        f"{what} was written by stssl {shown(version, 20)}, and stssl {__version__} cannot read it. Train again under "
        f"another name (name=...), or install stssl {shown(version, 20)} to use it"
    )
