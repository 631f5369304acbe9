"""The folder of one run: what is in it, and whose it is."""

import json
import logging
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stssl.base.config import Tree, differing_keys, validate
from stssl.base.errors import RunError
from stssl.base.textfiles import read_bounded
from stssl.base.whole_files import append_line, is_there, sync, write_whole
from stssl.base.yaml_text import FILE_BYTES, parse_yaml
from stssl.recipes.build import without_weights
from stssl.recipes.pretraining import kind_of
from stssl.recipes.recipe import R, RunRecipe, identity_of
from stssl.scoring.evaluation import without_nan
from stssl.store.store import Store
from stssl.training.checkpoint import Checkpoints
from stssl.training.kept import Done, Record, read_kept, read_rows

log = logging.getLogger("stssl")
PACKAGES = ("stssl", "torch", "timm", "ray", "zarr", "numpy")


class RunFolder:
    """`recipe.yaml`, `record.json`, `labels.json`, `metrics.jsonl`, `checkpoints/`, `evaluation/`, `done.json`."""

    def __init__(self, path: Path) -> None:
        """Use `path`, which need not exist."""
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")

    @classmethod
    def of(cls, recipe: RunRecipe) -> "RunFolder":
        """Return the folder of a recipe's run: `<launch.storage>/<name>`, absolute since the recipe was loaded."""
        return cls(Path(recipe.launch.storage) / recipe.name)

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """A run that was started.

        Raises:
            RunError: The folder is not a run's.
        """
        folder = cls(Path(path).absolute())
        if not (folder.path / "recipe.yaml").exists():
            raise RunError(f"{path} is not a run: it has no recipe.yaml. Give the folder that `stssl train` printed.")
        return folder

    def recipe(self) -> RunRecipe:
        """The resolved recipe that the run was started with."""
        tree = self._tree()
        return validate(kind_of(tree), tree, str(self.path / "recipe.yaml"))

    def recipe_as(self, kind: type[R]) -> R:
        """The same, of a kind of run that must be this one's.

        Raises:
            RunError: It is another kind's.
        """
        recipe = self.recipe()
        if not isinstance(recipe, kind):
            raise RunError(f"{self.path} is {recipe.what}, not {kind.what}. `{recipe.scored_by}` scores it.")
        return recipe

    def _tree(self) -> Tree:
        text = self.recipe_text()
        tree = parse_yaml(text, str(self.path / "recipe.yaml"))
        if not isinstance(tree, dict):
            raise RunError(f"{self.path / 'recipe.yaml'} is {'no recipe' if text.strip() else 'empty'}. {self._advice}")
        return tree

    def recipe_text(self) -> str:
        """The resolved recipe as it stands in `recipe.yaml`.

        Raises:
            RunError: It cannot be read.
        """
        path = self.path / "recipe.yaml"
        try:
            return read_bounded(path, FILE_BYTES, RunError, self._advice).decode()
        except UnicodeDecodeError:
            raise RunError(f"{path} is damaged: it is not UTF-8 text. {self._advice}") from None

    @property
    def _advice(self) -> str:
        return f"Put the run's recipe back, or delete {self.path} to start the run again."

    def refuse_others(self, recipe: RunRecipe) -> bool:
        """True if this recipe's run was started here already.

        Raises:
            RunError: Another recipe ran under this name; lists the keys that differ.
        """
        started = is_there(self.path / "recipe.yaml")
        if started:
            keys = differing_keys(identity_of(self._tree()), recipe.identity())
            if keys:
                raise RunError(
                    f"{self.path} holds a run of another recipe; it differs in {', '.join(keys)}. "
                    "Give this run another name (name=...), or delete that folder."
                )
        return started

    def claim(self, recipe: RunRecipe) -> None:
        """Start a run here, or go on with the same one; call in one process, once the recipe is known to be possible.

        Raises:
            RunError: Another recipe ran under this name; lists the keys that differ.
        """
        if not self.refuse_others(recipe):
            write_text(self.path / "recipe.yaml", recipe.yaml())

    def going_on(self, recipe: R) -> R:
        """Return the recipe to build networks from.

        On resume the initial weights are skipped: the checkpoint overwrites them.
        """
        return without_weights(recipe) if self.checkpoints.exist() else recipe

    def finished(self) -> dict[str, Any] | None:
        """Read how the run ended, or None while it has not.

        Raises:
            RunError: `done.json` is damaged.
        """
        path = self.path / "done.json"
        if not is_there(path):
            return None
        done = read_kept(Done, path, "Remove it: the same command finishes the run again then.")[0]
        return done.model_dump()

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the run as ended."""
        write_text(self.path / "done.json", json.dumps(without_nan(result), indent=1))

    def record(
        self, recipe: RunRecipe, data: dict[str, Any], labels: dict[str, Any] | None, *, world: int, step: int
    ) -> None:
        """Write down what produced the run, each of its starts (when, after which step, ranks) and the drawn labels.

        Args:
            recipe: Recipe of the run.
            data: Description of the data.
            labels: Drawn labels; None if the run uses none.
            world: Number of ranks.
            step: Step that this start goes on from.
        """
        if labels is not None:
            write_text(self.path / "labels.json", json.dumps(labels))
        path = self.path / "record.json"
        starts = self.recorded()[1].get("starts", [])
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        about = {
            "recipe_hash": recipe.hash(),
            "seed": recipe.seed,
            **data,
            "ranks": world,
            "starts": [*starts, {"at": now, "step": step, "ranks": world}],
            "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "commit": _commit(),
        }
        write_text(path, json.dumps(about, indent=1))

    def recorded(self) -> tuple[Record | None, dict[str, Any]]:
        """Read `record.json`, checked and as it stands there; None and nothing before the first start.

        Raises:
            RunError: It is damaged.
        """
        path = self.path / "record.json"
        if not is_there(path):
            return None, {}
        return read_kept(Record, path, "Put it back, or remove it: the next start of the run writes it again.")

    def require_store(self, store: Store) -> None:
        """Make sure that a store is the one that the run was started on.

        Raises:
            RunError: It has other patches or labels now.
        """
        record = self.recorded()[0]
        if record is not None and record.store.fingerprint != store.fingerprint:
            raise RunError(
                f"{store.path} has other patches or labels than when {self.path} was trained on it. "
                "Give back that store, or train under another name (name=...)."
            )

    def rows(self, file: str = "metrics.jsonl") -> Iterator[dict[str, Any]]:
        """Rows of `metrics.jsonl`, or another such file, in order; what is damaged is passed over."""
        yield from self.told(file)[0]

    def told(self, file: str = "metrics.jsonl") -> tuple[list[dict[str, Any]], int]:
        """Rows of such a file in order, and how many lines are none, as those that power loss or a kill cut off.

        Raises:
            RunError: It cannot be read.
        """
        return read_rows(self.path / file, numbers=file == "metrics.jsonl")

    def forget_after(self, step: int) -> None:
        """Drop metric rows that a resumed run will write again, and lines that are none, saying so.

        Raises:
            RunError: A file cannot be read or written.
        """
        for name in ("metrics.jsonl", "nonfinite.jsonl"):
            if name == "metrics.jsonl" or is_there(self.path / name):
                # Metrics tell of steps taken so far; a step that is left out has its index, one less.
                last = step if name == "metrics.jsonl" else step - 1
                rows, damaged = self.told(name)
                if damaged:
                    log.warning("%s: %d damaged lines are left out", self.path / name, damaged)
                kept = [json.dumps(row) for row in rows if row["step"] <= last]
                write_text(self.path / name, "".join(f"{line}\n" for line in kept))

    def append(self, row: dict[str, Any], file: str = "metrics.jsonl") -> None:
        """Add a row of metrics: all of it, or nothing.

        Raises:
            RunError: It cannot be written.
        """
        append_line(self.path / file, json.dumps(without_nan(row)))

    def sync(self) -> None:
        """Bring metrics to the disk, so that they are there wherever a checkpoint of their step is."""
        sync(self.path / "metrics.jsonl")


def write_text(path: Path, text: str) -> None:
    """Replace a file at once, so that no reader sees half of it.

    Raises:
        RunError: It cannot be written.
    """
    write_whole(path, text)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """Commit of the checkout this package runs from, if it is one that git may read."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
