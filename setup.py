"""Copy the recipes of `experiments/` into the package when a wheel is built; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path(__file__).parent / "experiments"


class BuildWithRecipes(build_py):
    """Build the package, and put the YAML files of `experiments/` beside its modules."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:  # then recipes are found in the checkout
            return
        target = Path(self.build_lib) / "stssl" / "recipe_files"
        shutil.rmtree(target, ignore_errors=True)
        for source in sorted(RECIPES.rglob("*.yaml")):
            copy = target / source.relative_to(RECIPES)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


setup(cmdclass={"build_py": BuildWithRecipes})
