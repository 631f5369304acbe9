"""Put the recipes of `experiments/` into wheels and source distributions. Only setuptools imports this module."""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist


def recipe_files() -> list[Path]:
    """Return the sorted paths of the YAML files in `experiments/`, relative to the folder where setuptools runs.

    This is the folder of pyproject.toml.

    Raises:
        FileNotFoundError: The folder `experiments` has no YAML files. A wheel without recipes must not be built.
    """
    found = sorted(Path("experiments").rglob("*.yaml"))
    if not found:
        raise FileNotFoundError("experiments/ has no recipes. Build in a whole checkout or source distribution.")
    return found


class BuildWithRecipes(build_py):  # type: ignore[misc]  # setuptools has no types
    """Let setuptools copy the recipes into the built package, as `stssl/recipe_files`."""

    def run(self) -> None:
        """Build the package, and copy the recipes into it.

        For an editable installation, do not copy them: it uses the recipes of the checkout.
        """
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "stssl" / "recipe_files"
        shutil.rmtree(target, ignore_errors=True)
        for source in recipe_files():
            copy = target / source.relative_to("experiments")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


class SourceWithRecipes(sdist):  # type: ignore[misc]  # setuptools has no types
    """Let setuptools add the recipes to a source distribution, so that a wheel can be built from it."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Fill the folder of a source distribution with setuptools' own choice of files, and with the recipes.

        Args:
            base_dir: Folder that becomes the distribution.
            files: Paths of the files that setuptools has chosen.
        """
        super().make_release_tree(base_dir, sorted({*files, *map(str, recipe_files())}))
