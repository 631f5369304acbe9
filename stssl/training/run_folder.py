"""Manage the folder of one run: create it, refuse other runs, and write and read its files."""

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stssl import __version__
from stssl.base.config import Tree, differing_keys, validate
from stssl.base.errors import RunError
from stssl.base.json_types import JsonMapping, JsonObject
from stssl.base.logs import LOG
from stssl.base.paths import below, folder_given, is_url
from stssl.base.textfiles import read_bounded
from stssl.base.whole_files import append_line, is_there, sync, write_whole
from stssl.base.yaml_text import FILE_BYTES, parse_yaml
from stssl.recipes.build import without_weights
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import R, RunRecipe, identity_of
from stssl.scoring.evaluation import without_nan
from stssl.store.store import Store
from stssl.training.checkpoints import Checkpoints
from stssl.training.remote_checkpoints import RemoteCheckpoints
from stssl.training.run_files import (
    METRICS_FILE,
    NONFINITE_FILE,
    DoneFile,
    MetricsRow,
    RecordFile,
    Rows,
    RunEnd,
    read_rows,
    read_run_file,
    version_problem,
)
from stssl.training.run_place import RunPlace

PACKAGES = ("torch", "timm", "ray", "zarr", "numpy")
"""Packages whose versions a run's record lists, besides stssl itself."""


class RunFolder(RunPlace):
    """Read and write the files of one run.

    The start of a run writes `recipe.yaml`. Training writes `record.json`, `labels.json`, `metrics.jsonl` and
    `checkpoints/`. The end of the run writes `done.json`. An evaluation writes `evaluation/`.

    Attributes:
        checkpoints: Checkpoints in the folder.
    """

    def __init__(self, place: str | Path) -> None:
        """Store `place`, the path or URL of the run's folder. Create and fetch nothing yet."""
        super().__init__(place)
        remote = None if self.mirror is None else RemoteCheckpoints(self.mirror, self.publish)
        self.checkpoints = Checkpoints(self.path / "checkpoints", remote)

    @classmethod
    def of(cls, recipe: RunRecipe) -> "RunFolder":
        """Return the folder of a recipe's run as a `RunFolder`: `<launch.storage>/<name>`. It may not exist yet."""
        return cls(below(recipe.launch.storage, recipe.name))

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """Return the folder of an existing run as a `RunFolder`. If it lies in an object store, fetch its files.

        Args:
            path: Path or URL of the folder.

        Raises:
            DataError: The object store cannot be read.
            RunError: The folder has no `recipe.yaml`, so it is not the folder of a run.
        """
        folder = cls(folder_given(path, "RUN") if is_url(str(path)) else Path(path).absolute())
        folder.refresh()
        if not (folder.path / "recipe.yaml").exists():
            raise RunError(f"{path} is not a run: it has no recipe.yaml. Give the folder that `stssl train` printed.")
        return folder

    def recipe(self) -> RunRecipe:
        """Return the recipe with which the run was started, as `recipe.yaml` records it.

        Raises:
            ConfigError: A key is unknown or has a wrong value.
            RunError: The file cannot be read, or an earlier release wrote it.
        """
        tree = self._tree()
        return validate(kind_of(tree), tree, str(self.path / "recipe.yaml"))

    def recipe_as(self, kind: type[R]) -> R:
        """Return the run's recipe, which must be of the class `kind`, such as that of pretraining recipes.

        Raises:
            ConfigError: A key is unknown or has a wrong value.
            RunError: The recipe is for another kind of run, the file cannot be read, or an earlier release wrote it.
        """
        recipe = self.recipe()
        if not isinstance(recipe, kind):
            raise RunError(f"{self.place} is {recipe.what}, not {kind.what}. `{recipe.scored_by}` scores it.")
        return recipe

    def _tree(self) -> Tree:
        """Return the values in `recipe.yaml` as nested dicts and lists of numbers and texts.

        Raises:
            RunError: The file cannot be read or holds no recipe, or an earlier release wrote it.
        """
        path, text = self.path / "recipe.yaml", self.recipe_text()
        tree = parse_yaml(text, str(path))
        if not isinstance(tree, dict):
            raise RunError(f"{path} is {'no recipe' if text.strip() else 'empty'}. {self._advice}")
        # Look for this key, which only release 0.1 wrote: if a run was killed before it wrote its record, nothing else
        # tells that this release wrote the folder.
        first = "0.1" if "neighbours" in tree else None
        if problem := version_problem(f"the run {self.place}", self._written_by() or first):
            raise RunError(f"{problem}.")
        return tree

    def _written_by(self) -> str | None:
        """Return the version of stssl that last started the run; None if `record.json` is missing or damaged."""
        try:
            record = self.read_record()[0]
        except RunError:  # go on without a version: callers that need the record report the damage
            return None
        version = record.versions.get("stssl") if record else None
        return version if isinstance(version, str) else None

    def recipe_text(self) -> str:
        """Return the text of `recipe.yaml`, the recipe that the run was started with.

        Raises:
            RunError: The file cannot be read.
        """
        path = self.path / "recipe.yaml"
        try:
            return read_bounded(path, FILE_BYTES, RunError, self._advice).decode()
        except UnicodeDecodeError:
            raise RunError(f"{path} is damaged: it is not UTF-8 text. {self._advice}") from None

    @property
    def _advice(self) -> str:
        return f"Put the run's recipe back, or delete {self.place} to start the run again."

    def refuse_others(self, recipe: RunRecipe) -> bool:
        """Raise an error if the folder has a run of another recipe.

        Returns:
            True if a run of this recipe was started here; False if none was.

        Raises:
            RunError: Another recipe or an earlier release used this name. The message lists the keys that differ.
        """
        started = is_there(self.path / "recipe.yaml")
        if started:
            # Compare plain values, not recipes: a file with keys that this version does not know cannot become a
            # recipe.
            keys = differing_keys(identity_of(self._tree()), recipe.identity())
            if keys:
                raise RunError(
                    f"{self.place} holds a run of another recipe; it differs in {', '.join(keys)}. "
                    "Give this run another name (name=...), or delete that folder."
                )
        return started

    def claim(self, recipe: RunRecipe) -> None:
        """Reserve the folder for this recipe's run by writing `recipe.yaml`. Do nothing if this was done already.

        Call this in one process only, and after `check_run`: a recipe that cannot run must not reserve a name.

        Raises:
            RunError: Another recipe or an earlier release used this name. The message lists the keys that differ.
        """
        if not self.refuse_others(recipe):
            write_text(self.path / "recipe.yaml", recipe.yaml())
            self.publish()

    def recipe_to_build(self, recipe: R) -> R:
        """Return the recipe from which to build the networks: without initial weights if the run resumes.

        The checkpoint of a resumed run replaces the initial weights, and their file may no longer exist.
        """
        return without_weights(recipe) if self.checkpoints.exist() else recipe

    def start_record(self) -> JsonObject | None:
        """Return the content of `record.json`, from which a resumed run takes its number format and image scaling.

        Return None if the run has no checkpoint or no record yet.

        Raises:
            RunError: The record is damaged.
        """
        if not self.checkpoints.exist():
            return None
        return self.read_record()[1] or None

    def finished(self) -> RunEnd | None:
        """Read from `done.json` how the run ended. Return None if it has not ended yet.

        Raises:
            RunError: `done.json` is damaged.
        """
        path = self.path / "done.json"
        if not is_there(path):
            return None
        done = read_run_file(DoneFile, path, "Remove it: the same command finishes the run again then.")[0]
        return {"steps": done.steps, "best": done.best, "best_step": done.best_step}

    def finish(self, end: RunEnd) -> None:
        """Write `end` to `done.json`, which marks the run as finished.

        If the run lies in an object store, send all other files to it before.
        """
        self.publish()
        write_text(self.path / "done.json", json.dumps(without_nan(end), indent=1))
        self.publish()

    def write_record(
        self, recipe: RunRecipe, data: JsonObject, labels: JsonMapping | None, *, world: int, step: int
    ) -> None:
        """Write `record.json`, which says what produced the run (data, versions, starts), and `labels.json`.

        Args:
            recipe: Recipe of the run.
            data: Description of the data: the store and the number of patches in each part.
            labels: Contents of `labels.json`; None if the run uses no labels.
            world: Number of ranks (training processes).
            step: Number of steps that were taken before this start.
        """
        if labels is not None:
            write_text(self.path / "labels.json", json.dumps(labels))
        starts = self.read_record()[1].get("starts", [])
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record: dict[str, object] = {
            "recipe_hash": recipe.hash(),
            "seed": recipe.seed,
            **data,
            "ranks": world,
            "starts": [*starts, {"at": now, "step": step, "ranks": world}],
            "versions": {"stssl": __version__}
            | {name: _version(name) for name in PACKAGES}
            | {"python": platform.python_version()},
            "commit": _commit(),
        }
        write_text(self.path / "record.json", json.dumps(record, indent=1))

    def read_record(self) -> tuple[RecordFile | None, dict[str, Any]]:
        """Read `record.json`, which says what produced the run (data, versions, starts).

        Returns:
            An object with the checked keys, and the whole file as plain values. None and an empty dict if the run never
            started.

        Raises:
            RunError: The file is damaged.
        """
        path = self.path / "record.json"
        if not is_there(path):
            return None, {}
        return read_run_file(RecordFile, path, "Put it back, or remove it: the next start of the run writes it again.")

    def require_store(self, store: Store) -> None:
        """Raise an error if a store's patches or labels differ from those at the start of the run.

        Raises:
            RunError: The store has other patches or labels.
        """
        record = self.read_record()[0]
        if record is not None and record.store.fingerprint != store.fingerprint:
            raise RunError(
                f"{store.path} has other patches or labels than when {self.place} was trained on it. "
                "Give back that store, or train under another name (name=...)."
            )

    def rows(self, file: str = METRICS_FILE) -> Iterator[MetricsRow]:
        """Yield the rows of `file`, a file in the run's folder with one JSON object in each line. Skip damaged lines.

        Raises:
            RunError: The file cannot be read.
        """
        yield from self.read_rows(file).rows

    def read_rows(self, file: str = METRICS_FILE) -> Rows:
        """Return the valid rows and the number of damaged lines of `file`.

        It is a file in the run's folder with one JSON object in each line, by default `metrics.jsonl`.

        Raises:
            RunError: The file cannot be read.
        """
        return read_rows(self.path / file, numbers=file == METRICS_FILE)

    def drop_rows_after(self, step: int) -> None:
        """Delete the rows of steps after `step` from the run's metrics and from its list of steps with bad gradients.

        These are `metrics.jsonl` and `nonfinite.jsonl`. A resumed run writes the deleted rows again.

        Raises:
            RunError: A file cannot be read or written.
        """
        for name in (METRICS_FILE, NONFINITE_FILE):
            if name == METRICS_FILE or is_there(self.path / name):
                # Subtract 1 for bad steps, because the files count differently: rows of metrics have the number of
                # steps taken, and bad steps have their own number, counted from 0.
                last = step if name == METRICS_FILE else step - 1
                rows, damaged = self.read_rows(name)
                if damaged:
                    LOG.warning("%s: %d damaged lines are left out", self.path / name, damaged)
                kept = [json.dumps(row) for row in rows if row["step"] <= last]
                write_text(self.path / name, "".join(f"{line}\n" for line in kept))

    def append(self, row: Mapping[str, object], file: str = METRICS_FILE) -> None:
        """Append a row (values by key) to `file` in the run's folder. If writing fails, no part of the row stays.

        Raises:
            StsslError: The file cannot be written, or an object store refuses files.
        """
        self.check_sending()
        append_line(self.path / file, json.dumps(without_nan(row)))

    def sync(self) -> None:
        """Force the metrics and the list of bad steps to disk.

        Call this before a checkpoint is written: a resumed run cannot restore lost rows.

        Raises:
            RunError: A file could not be written to disk.
        """
        for name in (METRICS_FILE, NONFINITE_FILE):
            sync(self.path / name)


def write_text(path: Path, text: str) -> None:
    """Write a text file, or replace it. A reader sees the old file or the new one, never a half-written one.

    Raises:
        RunError: The file cannot be written.
    """
    write_whole(path, text)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """Return the git commit of this package's checkout; None if the package is not in a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
