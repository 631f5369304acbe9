"""Imports go in one direction: a folder imports only from layers below its own, and modules never in a circle."""

import ast
from pathlib import Path

from house_table import circles, files_of, folder_of, module_arrows

PACKAGE = Path(__file__).parents[1] / "stssl"
LAYERS = [
    ["base"],
    ["store", "algorithms", "models"],
    ["steps", "data", "archives"],
    ["contrastive", "students"],
    ["recipes"],
    ["scoring"],
    ["training"],
    ["analysis", "exports", "mapping"],
    ["predictions"],
    ["sweeps", "shifts"],
    ["api"],
    ["commands"],
    ["__main__"],
]
"""Lowest first; folders of one layer do not import each other."""
RAY = {"base.ray_session", "archives.conversion", "analysis.planning"}
RAY |= {f"training.{name}" for name in ("launch", "ray_metrics", "ray_notices", "evaluation_tasks")}
RAY |= {"mapping.block_tasks", "commands.submission", "commands.quick_start"}
RAY |= {"shifts.ray_tasks"}
RAY |= {f"sweeps.{name}" for name in ("run", "trials", "tuning", "confirmation")}
"""Modules that may import Ray."""


def layer(folder: str) -> int:
    return next(number for number, folders in enumerate(LAYERS) if folder in folders)


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """Imports between folders that do not point down."""
    found = []
    for module, others in arrows.items():
        for other in others:
            own, target = folder_of(module), folder_of(other)
            if own and target and own != target and layer(target) >= layer(own):
                found.append(f"{module} imports {other}")
    return sorted(found)


def ray_users(package: Path) -> set[str]:
    """Modules that import Ray anywhere, also inside functions."""
    found = set()
    for name, path in files_of(package).items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(imported.split(".")[0] == "ray" for imported in names):
                found.add(name.partition(".")[2])
    return found


def relative(package: Path) -> list[str]:
    return [
        name
        for name, path in files_of(package).items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def test_folders_import_downward_only():
    assert upward(module_arrows(PACKAGE)) == []


def test_modules_import_each_other_in_no_circle():
    assert circles(module_arrows(PACKAGE)) == []


def test_ray_is_imported_at_the_edge_only():
    assert ray_users(PACKAGE) <= RAY


def test_imports_are_absolute():
    assert relative(PACKAGE) == []


def package_of(folder: Path, **texts: str) -> Path:
    package = folder / "stssl"
    for name, text in texts.items():
        path = package / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_control_an_upward_import_is_found(tmp_path):
    package = package_of(tmp_path, base__a="from stssl.recipes.b import X\nimport ray\n", recipes__b="X = 1\n")
    assert upward(module_arrows(package)) == ["stssl.base.a imports stssl.recipes.b"]
    assert not ray_users(package) <= RAY


def test_control_a_circle_inside_a_folder_is_found(tmp_path):
    one = "def f():\n    from stssl.sweeps.b import g\n"
    package = package_of(tmp_path, sweeps__a=one, sweeps__b="from stssl.sweeps.a import f\n")
    assert upward(module_arrows(package)) == []
    assert circles(module_arrows(package)) == [["stssl.sweeps.a", "stssl.sweeps.b"]]
