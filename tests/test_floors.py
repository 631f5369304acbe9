"""Imports go in one direction: a file imports only from floors below its own (see FLOORS)."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "stssl"
FLOORS = [
    ["__init__", "__version__"],
    ["errors", "batch", "cluster", "config", "labels", "distributed", "randomness", "schema", "nomenclature"]
    + ["mistakes", "paths", "stopping", "textfiles", "wholefiles", "yamltext"],
    ["hashing", "optimizers"],
    ["augment", "costs", "figures", "losses", "metrics", "page"],
    ["archives", "data", "models", "algorithms"],
    ["pretrain", "convert", "views"],
    ["steps"],
    ["recipe"],
    ["pretraining"],
    ["rundata"],
    ["build"],
    ["evaluate"],
    ["neighbours"],
    ["train"],
    ["sweep", "plan", "probe", "report"],
    ["submit"],
    ["progress"],
    ["quickstart"],
    ["cli"],
]
RAY = {"cluster", "convert", "train/launch", "submit", "plan", "cli", "quickstart"}
RAY |= {f"sweep/{name}" for name in ("run", "trial", "tuning", "confirm")}


def floor(name: str) -> int:
    top = name.split("/", maxsplit=1)[0]
    return next(i for i, names in enumerate(FLOORS) if top in names)


def imported(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def violations(package: Path) -> list[str]:
    found = []
    for path in package.rglob("*.py"):
        own = str(path.relative_to(package).with_suffix(""))
        for name in imported(path):
            if name.split(".")[0] == "ray" and own not in RAY:
                found.append(f"{own} imports ray")
            if name.startswith("stssl."):
                other = name.split(".")[1]
                same_folder = other == own.split("/", maxsplit=1)[0]
                within_first = floor(own) == floor(other) == 1
                if (
                    other not in ("__version__",)
                    and not same_folder
                    and not within_first
                    and floor(other) >= floor(own)
                ):
                    found.append(f"{own} imports {name}")
    return found


def test_imports_point_down():
    assert violations(PACKAGE) == []


def test_control_an_upward_import_is_found(tmp_path):
    (tmp_path / "losses.py").write_text("from stssl.recipe import Recipe\nimport ray\n")
    assert len(violations(tmp_path)) == 2
