"""Measure how easy the package is to read: docstrings, comments, types, names, circles of imports.

Run `python tests/house_table.py [PACKAGE]` for a table; `--json FILE` writes it too. `tests/test_house.py` holds the
limits.
"""

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).parents[1] / "stssl"
RELATIVE = {"what", "whether", "whose", "which", "who", "where", "when", "how", "of", "that", "why"}
"""First words of docstrings that do not say what the code does, but start with a relative clause."""
SEVERAL = 3
"""Number of parameters from which on a public function needs `Args:` in its docstring."""
DIRECTIVES = re.compile(r"#\s*(noqa|type:|pragma|fmt:|ruff:|!)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files_of(package: Path) -> dict[str, Path]:
    """Find the files of all modules of a package, by dotted name. An `__init__` has the name of its folder."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def documented(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | Function]:
    """Yield the module and every class and function in it that has a docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node):
            yield node


def parameters(function: Function) -> list[str]:
    """List a function's parameters without `self` and `cls`."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def is_command(function: Function) -> bool:
    """Return True for a function of the command line: help texts of its options describe its parameters."""
    return function.name.endswith("_command")


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Yield public functions, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, Function) and not inner.name.startswith("_"):
                    yield inner


def public_names(tree: ast.Module) -> set[str]:
    """Collect public classes, functions and constants that a module defines at its top level."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def comments(text: str) -> int:
    """Count the lines with a comment, without directives to tools such as `noqa`."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT and not DIRECTIVES.match(token.string) for token in tokens)


def uses_of_any(tree: ast.Module) -> int:
    """Count how often a module uses `Any`, without its import."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Collect the modules of this package that a module imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & known) or ({node.module} & known)
            if node.module in known and whole - known:
                found.add(node.module)
    return found


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Find groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in arrows.get(node, ()):
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in number:
            visit(node)
    return found


def module_arrows(package: Path) -> dict[str, set[str]]:
    """Find for each module of a package the modules of the package that it imports."""
    files = files_of(package)
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    # The package's own `__init__` imports the API for type checkers only. At run time this is no import, so leave it
    # out.
    if package.name in trees:
        lazy = trees[package.name]
        lazy.body = [node for node in lazy.body if not ast.unparse(node).startswith("if TYPE_CHECKING")]
    return {name: imports(tree, set(files)) - {name} for name, tree in trees.items()}


def folder_of(module: str) -> str:
    """Return the folder of a module, directly below the package; for a file at the top, its name."""
    return module.split(".")[1] if "." in module else ""


def folder_arrows(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Turn imports between modules into imports between folders. Leave out those inside a folder and to the package."""
    joined: dict[str, set[str]] = defaultdict(set)
    for module, others in arrows.items():
        joined[folder_of(module)] |= {folder_of(other) for other in others} - {folder_of(module), ""}
    return {folder: others for folder, others in joined.items() if folder}


def import_seconds(package: Path, tries: int = 3) -> float:
    """Measure the seconds of `import stssl` in a new process, without Python's own start; take the shortest try."""
    code = f"import time; start = time.perf_counter(); import {package.name}; print(time.perf_counter() - start)"
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, check=True)
        for _ in range(tries)
    ]
    return min(float(run.stdout) for run in runs)


def measure(package: Path = PACKAGE) -> dict[str, float]:
    """Count everything that the table shows for a package.

    Args:
        package: Folder of the package.

    Returns:
        Counts, and shares in percent, by name.
    """
    files = files_of(package)
    texts = {name: path.read_text() for name, path in files.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    lines = sum(text.count("\n") for text in texts.values())
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    docs = [ast.get_docstring(node) or "" for tree in trees.values() for node in documented(tree)]
    opening = [re.split(r"[^\w']+", doc.lstrip("`*[("), maxsplit=1)[0].lower() for doc in docs]
    wide = [
        node
        for tree in trees.values()
        for node in public_functions(tree)
        if len(parameters(node)) >= SEVERAL and not is_command(node)
    ]
    owners: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees.items():
        for public in public_names(tree):
            owners[public].append(name)
    arrows = module_arrows(package)
    folders = folder_arrows(arrows)
    return {
        "files": len(files),
        "lines": lines,
        "functions": len(functions),
        "median lines of a function": median(lengths),
        "lines of the longest function": max(lengths),
        "docstrings": len(docs),
        "docstrings that open with a relative clause, %": 100 * sum(word in RELATIVE for word in opening) / len(docs),
        "public functions of three or more parameters": len(wide),
        "of these with Args, %": 100 * sum("Args:" in (ast.get_docstring(f) or "") for f in wide) / max(1, len(wide)),
        "Any per 1,000 lines": 1000 * sum(map(uses_of_any, trees.values())) / lines,
        "comments per 100 lines": 100 * sum(map(comments, texts.values())) / lines,
        "public names": len(owners),
        "public names defined in two modules, %": 100 * sum(len(o) > 1 for o in owners.values()) / len(owners),
        "folders and files at the top": len(folders),
        "arrows between them": sum(map(len, folders.values())),
        "circles of folders": len(circles(folders)),
        "circles of modules": len(circles(arrows)),
        "seconds of `import stssl`": import_seconds(package),
    }


def main() -> None:
    """Print the table of all counts, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", nargs="?", type=Path, default=PACKAGE)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.package.resolve())
    print("| measure | value |\n| --- | --- |")
    for name, value in found.items():
        print(f"| {name} | {value:,.2f} |" if isinstance(value, float) else f"| {name} | {value:,} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
