from typing import Annotated, Literal

import pytest
from pydantic import Field

from stssl.base.config import (
    Config,
    Domain,
    apply_overrides,
    differing_keys,
    expand_variables,
    fields_of,
    load_tree,
    merge,
    validate,
)
from stssl.base.errors import ConfigError


class Cat(Config):
    name: Literal["cat"]
    lives: Annotated[int, Field(ge=1), Domain(1, 9)] = 9


class Dog(Config):
    name: Literal["dog"]
    tricks: tuple[str, ...] = ()


class Home(Config):
    pet: Annotated[Cat | Dog, Field(discriminator="name")]
    rent: float = 1.0


def message(call, *args):
    with pytest.raises(ConfigError) as caught:
        call(*args)
    return str(caught.value)


def test_bases_are_merged_nearest_last(tmp_path):
    (tmp_path / "base.yaml").write_text("pet: {name: cat, lives: 3}\nrent: 1e-4\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\npet: {lives: 4}\n")
    tree = load_tree(tmp_path / "own.yaml")
    assert tree == {"pet": {"name": "cat", "lives": 4}, "rent": 1e-4}


def test_a_part_with_another_name_replaces_the_whole_part():
    assert merge({"pet": {"name": "cat", "lives": 3}}, {"pet": {"name": "dog"}}) == {"pet": {"name": "dog"}}
    assert merge({"pet": {"name": "cat", "lives": 3}}, {"pet": {"name": "cat"}})["pet"]["lives"] == 3


def test_overrides_take_dotted_keys_and_yaml_values():
    tree = apply_overrides({"pet": {"name": "cat"}}, ["pet.lives=2", "rent=1e3", "tags=[a, b]"])
    assert tree == {"pet": {"name": "cat", "lives": 2}, "rent": 1000.0, "tags": ["a", "b"]}
    assert "section.key=value" in message(apply_overrides, {}, ["rent"])


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"pet": {"name": "cat", "live": 2}}, ["home.yaml", "unknown key pet.live", "did you mean lives?"]),
        ({"pet": {"name": "cat", "lives": 0}}, ["pet.lives", "greater than or equal to 1", "given: 0"]),
        ({"pet": {"name": "cat", "lives": "3"}}, ["pet.lives", "integer"]),
        ({"pet": {"name": "cow"}}, ["pet", "'cat', 'dog'"]),
        ({"pet": {"name": "dog"}, "rend": 2.0}, ["unknown key rend", "did you mean rent?"]),
        ({}, ["pet", "required"]),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(tree, words):
    text = message(validate, Home, tree, "home.yaml")
    assert all(word in text for word in words), text


def test_lists_become_tuples_and_frozen():
    home = validate(Home, {"pet": {"name": "dog", "tricks": ["sit"]}}, "x")
    assert home.pet.tricks == ("sit",)
    with pytest.raises(ValueError, match="frozen"):
        home.rent = 2.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "stands twice"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "top level"),
        ("base: own.yaml", "circle"),
    ],
)
def test_bad_files(tmp_path, text, words):
    (tmp_path / "own.yaml").write_text(text)
    assert words in message(load_tree, tmp_path / "own.yaml")


def test_missing_file_and_variable(monkeypatch):
    assert "cannot read" in message(load_tree, "nowhere.yaml")
    monkeypatch.delenv("STSSL_TEST_STORE", raising=False)
    text = message(expand_variables, {"data": {"store": "${STSSL_TEST_STORE}/x"}}, "r.yaml")
    assert "data.store" in text and "export STSSL_TEST_STORE" in text
    monkeypatch.setenv("STSSL_TEST_STORE", "/s")
    assert expand_variables({"data": {"store": "${STSSL_TEST_STORE}/x"}}, "r.yaml") == {"data": {"store": "/s/x"}}


def test_yaml_never_builds_objects(tmp_path):
    (tmp_path / "own.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    assert "line 1: the tag" in message(load_tree, tmp_path / "own.yaml")


def test_differing_keys_are_dotted():
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 0}) == ["a.c", "d"]


def test_fields_of_a_part_follow_its_name():
    tree = {"pet": {"name": "cat"}}
    field = fields_of(Home, tree, ["pet"])["lives"]
    assert any(isinstance(item, Domain) for item in field.metadata)
    assert "lives" not in fields_of(Home, {"pet": {"name": "dog"}}, ["pet"])
    assert "did you mean pet" in message(fields_of, Home, tree, ["pets"])


def test_dates_are_texts(tmp_path):
    assert apply_overrides({}, ["name=2026-11-21"]) == {"name": "2026-11-21"}
    (tmp_path / "bases.yaml").write_text("base: [a.yaml]")
    with pytest.raises(ConfigError, match="base must be the path of one file"):
        load_tree(tmp_path / "bases.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_tree(tmp_path / "bytes.yaml")
    with pytest.raises(ConfigError, match="of a kind that recipes do not know"):
        validate(Cat, {"name": {1, 2}}, "test")
