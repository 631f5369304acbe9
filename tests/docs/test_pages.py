"""The documentation builds without a warning, loads nothing from elsewhere, and describes every key and command."""

import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

import stssl
from stssl import api
from stssl.base.config import Config, config_types
from stssl.commands.cli import app
from stssl.recipes.pretraining import PretrainRecipe
from stssl.recipes.recipe import Recipe
from stssl.sweeps.spec import SweepConfig

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "--fail-on-warning", "--builder", "html", str(DOCS), str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


class Loads(HTMLParser):
    """Collects what a browser would fetch to show a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in LOADED:
            self.found.append(given.get(LOADED[tag]))
        if tag == "link" and {"stylesheet", "preload", "icon"} & set((given.get("rel") or "").split()):
            self.found.append(given.get("href"))


def foreign(text):
    return [place for place in Loads(text).found if place and re.match(r"(https?:)?//", place)]


def test_no_page_loads_anything_from_another_host(built):
    pages = sorted(built.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: foreign(page.read_text()) for page in pages if foreign(page.read_text())} == {}
    for style in built.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


def test_control_a_page_that_loads_something_is_found():
    assert foreign('<img src="https://a.b/c.png"><a href="https://a.b">link</a>') == ["https://a.b/c.png"]
    assert foreign('<link rel="stylesheet" href="//a.b/c.css"><script src="own.js"></script>') == ["//a.b/c.css"]


def models():
    found: list[type[Config]] = []

    def walk(model):
        if model not in found:
            found.append(model)
            for field in model.model_fields.values():
                for part in config_types(field.annotation):
                    walk(part)

    for model in (Recipe, PretrainRecipe, SweepConfig):
        walk(model)
    return found


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_key_has_a_meaning(model, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    from reference_pages import about, meanings_of

    keys = {name for name in model.model_fields if name != "name" or model.__name__.endswith("Recipe")}
    assert keys <= set(meanings_of(model)) and about(model)


def test_the_reference_names_every_key_and_command(built):
    recipe = (built / "generated" / "recipe.html").read_text()
    for key in ("data.split.degrees", "algorithm.threshold", "launch.workers", "pretext.queue", "optimizer.clip"):
        assert key in recipe
    assert "0.6 to 0.99" in recipe  # the domain of a threshold
    commands = re.sub(r"<[^>]+>", "", (built / "generated" / "commands.html").read_text())
    for name in typer.main.get_command(app).commands:
        assert f"stssl {name}" in commands


def returns_with_a_colon(docs):
    """Names of docstrings whose first line of `Returns` has a colon: Sphinx shows words before it as a type."""
    found = re.compile(r"Returns:\n\s+[^\n]*:(?=\s)")
    return [name for name, doc in docs.items() if found.search(doc or "")]


def test_no_words_about_a_result_are_taken_for_its_type():
    docs = {name: getattr(stssl, name).__doc__ for name in stssl.__all__}
    for kind in (stssl.Run, stssl.Store):
        docs |= {
            f"{kind.__name__}.{name}": inspect.getdoc(getattr(kind, name)) for name in vars(kind) if name[0] != "_"
        }
    assert not returns_with_a_colon(docs)
    assert returns_with_a_colon({"f": "Do.\n\nReturns:\n    A pair: one, two.\n"}) == ["f"]  # control


def test_the_api_is_shown_by_the_names_that_users_write(built):
    text = re.sub(r"<[^>]+>", "", (built / "reference" / "api.html").read_text())
    for name in (*api.__all__, "recipe_names"):
        assert f"stssl.{name}(" in text
    assert "stssl.api" not in text


def unquoted(page):
    """List the commands and overrides of a page whose brackets or braces a shell would read as its own."""
    blocks = re.findall(r"^```(?:console|bash|sh|text)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if re.match(r"\s*(\$ |stssl |python |\w+=\S+ stssl |for )", line)]
    overrides = re.findall(r"`([\w.]+=[\[{][^`]*)`", page)
    bare = [re.sub(r"'[^']*'|\"[^\"]*\"|\$\{\w+\}", "", words) for words in commands + overrides]
    return [words for words in bare if re.search(r"[\[\]{}]", words)]


def test_commands_quote_brackets_and_braces():
    pages = [CHECKOUT / "README.md", *DOCS.rglob("*.md")]
    assert {page.name: unquoted(page.read_text()) for page in pages if unquoted(page.read_text())} == {}
    assert unquoted("```console\n$ stssl train x \\\n    data.bands=[1,2]\n[1, 2]\n```\n") != []  # control
    assert unquoted("Set `data.split={name: blocks}`.") and not unquoted("Set `'data.bands=[1]'` or `[1]`.")


def test_pages_link_only_to_what_is_there():
    for page in DOCS.rglob("*.md"):
        if "generated" in page.parts or "_build" in page.parts:
            continue
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not re.match(r"\w+:", target) and "generated/" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"
