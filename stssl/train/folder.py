"""The folder of one run: what is in it, and whose it is."""

import json
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from stssl.build import without_weights
from stssl.config import Tree, differing_keys, validate
from stssl.data.store import Store
from stssl.errors import RunError
from stssl.evaluate import without_nan
from stssl.pretraining import kind_of
from stssl.recipe import R, RunRecipe, identity_of
from stssl.train.checkpoint import Checkpoints

PACKAGES = ("stssl", "torch", "timm", "ray", "zarr", "numpy")


class RunFolder:
    """`recipe.yaml`, `record.json`, `labels.json`, `metrics.jsonl`, `checkpoints/`, `evaluation/`, `done.json`."""

    def __init__(self, path: Path) -> None:
        """Use `path`, which need not exist."""
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")

    @classmethod
    def of(cls, recipe: RunRecipe) -> "RunFolder":
        """Where a recipe's run lives: `<launch.storage>/<name>`, absolute since the recipe was loaded."""
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
            raise RunError(f"{self.path} is {recipe.what}, not {kind.what}")
        return recipe

    def _tree(self) -> Tree:
        tree: Tree = yaml.safe_load((self.path / "recipe.yaml").read_text())
        return tree

    def refuse_others(self, recipe: RunRecipe) -> bool:
        """Whether this recipe's run was started here already.

        Raises:
            RunError: Another recipe ran under this name; lists the keys that differ.
        """
        started = (self.path / "recipe.yaml").exists()
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
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.path / "recipe.yaml", recipe.yaml())

    def going_on(self, recipe: R) -> R:
        """What networks are built by: where a checkpoint will fill them, the weights to start from may be gone."""
        return without_weights(recipe) if self.checkpoints.exist() else recipe

    def finished(self) -> dict[str, Any] | None:
        """How the run ended, or None while it has not."""
        path = self.path / "done.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the run as ended."""
        write_text(self.path / "done.json", json.dumps(without_nan(result), indent=1))

    def record(
        self, recipe: RunRecipe, data: dict[str, Any], labels: dict[str, Any] | None, *, world: int, step: int
    ) -> None:
        """Write down what produced the run, each of its starts (when, after which step, ranks) and the drawn labels."""
        if labels is not None:
            write_text(self.path / "labels.json", json.dumps(labels))
        path = self.path / "record.json"
        starts = json.loads(path.read_text())["starts"] if path.exists() else []
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

    def require_store(self, store: Store) -> None:
        """Make sure that a store is the one that the run was started on.

        Raises:
            RunError: It has other patches or labels now.
        """
        path = self.path / "record.json"
        if path.exists() and json.loads(path.read_text())["store"]["fingerprint"] != store.fingerprint:
            raise RunError(
                f"{store.path} has other patches or labels than when {self.path} was trained on it. "
                "Give back that store, or train under another name (name=...)."
            )

    def rows(self, file: str = "metrics.jsonl") -> Iterator[dict[str, Any]]:
        """Rows of `metrics.jsonl`, or another such file, in order; a last line that was cut off is passed over."""
        path = self.path / file
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def forget_after(self, step: int) -> None:
        """Drop metric rows that a resumed run will write again."""
        for name in ("metrics.jsonl", "nonfinite.jsonl"):
            if name == "metrics.jsonl" or (self.path / name).exists():
                # Metrics tell of steps taken so far; a step that is left out has its index, one less.
                last = step if name == "metrics.jsonl" else step - 1
                kept = [json.dumps(row) for row in self.rows(name) if row["step"] <= last]
                write_text(self.path / name, "".join(f"{line}\n" for line in kept))

    def append(self, row: dict[str, Any], file: str = "metrics.jsonl") -> None:
        """Add a row of metrics."""
        with (self.path / file).open("a") as lines:
            lines.write(json.dumps(without_nan(row)) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file at once, so that no reader sees half of it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.replace(path)


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
