"""YAML that a stranger wrote: right values, or one line that names the file and the place, soon."""

import os
import time

import pytest
import yaml

from stssl.base.config import apply_overrides, expand_variables, load_tree, validate
from stssl.base.errors import ConfigError
from stssl.base.yaml_text import DEPTH, NODES, dump_yaml, parse_yaml, unclean
from stssl.recipes.recipe import Recipe

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 10)
)
CHAIN = "a0: &a0 " + "[" * 40 + "x" + "]" * 40 + "\n" + "a1: " + "[" * 40 + "*a0" + "]" * 40


def message(call, *args):
    with pytest.raises(ConfigError) as caught:
        call(*args)
    text = str(caught.value)
    assert len(text) < 700 and text.isprintable(), text
    return text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(LAUGHS, ["line", f"more than {NODES:,} values"], id="aliases"),
        pytest.param(MERGES, ["line", f"more than {NODES:,} values"], id="merged aliases"),
        pytest.param("a: &a [*a]", ["line 1", "within its own anchor"], id="alias of itself"),
        pytest.param("a: &a {<<: *a}", ["line 1", "within its own anchor"], id="merge of itself"),
        pytest.param("a: *b", ["undefined alias"], id="no such anchor"),
        pytest.param("[" * 100_000, ["nested more than"], id="deep flow"),
        pytest.param("{a: " * 100_000, ["nested more than"], id="deep flow mapping"),
        pytest.param("- " * 100_000, ["nested more than"], id="deep block"),
        pytest.param("? " * 100_000, ["nested more than"], id="deep keys"),
        pytest.param(CHAIN, ["a1", f"nested more than {DEPTH} deep"], id="depth through aliases"),
        pytest.param("a: " + "9" * 5000, ["line 1", "64 bits"], id="long integer"),
        pytest.param("a: 0x" + "f" * 50_000, ["line 1", "64 bits"], id="long hexadecimal"),
        pytest.param("a: 9223372036854775808", ["line 1", "64 bits"], id="2^63"),
        pytest.param("\na: 1e999", ["line 2", "finite"], id="overflow"),
        pytest.param("a: " + "9" * 5000 + ".5", ["line 1", "finite"], id="long float"),
        pytest.param("a: .inf", ["line 1", "finite"], id="inf"),
        pytest.param("a: -.INF", ["line 1", "finite"], id="minus inf"),
        pytest.param("a: .nan", ["line 1", "finite"], id="nan"),
        pytest.param("a: 1\x00", ["#x0000"], id="raw nul"),
        pytest.param('b: [{a: "x\\0"}]', ["b[0].a", "U+0000"], id="escaped nul"),
        pytest.param('b: {a: "\\e[2J"}', ["b.a", "U+001B"], id="escape character"),
        pytest.param('b: {"\\ud800": 1}', ["key", "U+D800"], id="lone surrogate in a key"),
        pytest.param('"\\U00110000"', ["not valid YAML"], id="no character"),
        pytest.param("%YAML " + "1" * 5000 + ".1\n--- a", ["not valid YAML"], id="long version"),
        pytest.param("b: {a: 1,\n a: 2}", ["line 2", "a stands twice"], id="repeated"),
        pytest.param("1: a", ["line 1", "key 1 is not a text"], id="number as key"),
        pytest.param("~: a", ["line 1", "key ~ is not a text"], id="null as key"),
        pytest.param("yes: a", ["line 1", "key yes is not a text"], id="truth as key"),
        pytest.param("{[a]: b}", ["line 1", "a key is not a text"], id="list as key"),
        pytest.param("? {a: b}\n: c", ["line 1", "a key is not a text"], id="mapping as key"),
        pytest.param("a: !!binary aGk=", ["line 1", "tag"], id="binary"),
        pytest.param("a: !!set {b}", ["line 1", "tag"], id="set"),
        pytest.param("a: !!timestamp x", ["line 1", "tag"], id="timestamp"),
        pytest.param("a: !!int ''", ["line 1", "tag"], id="empty integer"),
        pytest.param("a: !!bool x", ["line 1", "tag"], id="no truth"),
        pytest.param("a: !!python/name:os.system", ["line 1", "tag"], id="python"),
        pytest.param("a: !mine x", ["line 1", "tag"], id="own tag"),
        pytest.param("a: !!str {b: 1}", ["expected a scalar"], id="mapping as text"),
        pytest.param("--- {a: 1}\n--- {b: 1}", ["single document"], id="documents"),
        pytest.param("a:\n\t- b", ["not valid YAML"], id="tab"),
        pytest.param("a: 1\n" * 300_000, ["larger than 1 MB"], id="huge"),
        pytest.param("".join(f"k{i}: 1\n" for i in range(NODES)), ["more than"], id="many keys"),
        pytest.param("x" * 100_000 + ": [", ["not valid YAML"], id="long key"),
    ],
)
def test_hostile_text_ends_in_words_that_name_the_place(text, words):
    began = time.process_time()
    found = message(parse_yaml, text, "r.yaml")
    spent = time.process_time() - began
    assert found.startswith("r.yaml") and all(word in found for word in words), found
    assert spent < 15


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("0x10", 16),
        ("0b11", 3),
        ("9223372036854775807", 2**63 - 1),
        ("010", "010"),
        ("0o17", "0o17"),
        ("1:30:00", "1:30:00"),
        ("1:30.5", "1:30.5"),
        ("2020-01-02", "2020-01-02"),
        ("._", "._"),
        ("1__0", "1__0"),
        ("=", "="),
        ("!!str 010", "010"),
        ("true", True),
        ("~", None),
        ("", None),
        ("\ufeffa", "a"),
        ("{a: &x {k: 1}, b: *x}", {"a": {"k": 1}, "b": {"k": 1}}),
        ("{a: &x {k: 1, l: 2}, b: {<<: *x, k: 3}}", {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
        ("{x: {y: &y {<<: &z {k: 1}, k: 2}}, z: {<<: *y}}", {"x": {"y": {"k": 2}}, "z": {"k": 2}}),
    ],
)
def test_values(text, value):
    found = parse_yaml(text, "r.yaml")
    assert found == value and type(found) is type(value)


def test_what_is_dumped_reads_back_as_the_same_here_and_elsewhere():
    texts = ["1e5", "1e-4", "010", "1:30", "0o17", "2020-01-02", "yes", "=", ".5", "1_0", "", "~", "<<", "a: b", "é"]
    tree = {"texts": texts, "numbers": [1e-5, 1e20, 7, -0.5], **{text: 1 for text in texts if text not in ("<<", "=")}}
    assert parse_yaml(dump_yaml(tree), "x") == tree
    assert yaml.safe_load(dump_yaml(tree)) == tree
    assert parse_yaml(yaml.safe_dump({"a": "1e5"}), "x") == {"a": 1e5}, "the control: PyYAML's own dump does not"


def test_a_run_name_that_looks_like_a_number_stays_a_text(recipe_tree):
    recipe = validate(Recipe, recipe_tree | {"name": "1e5"}, "x")
    assert validate(Recipe, parse_yaml(recipe.yaml(), "y"), "y") == recipe


@pytest.mark.parametrize(
    "override", ["a..b=1", "=1", ".a=1", "a.=1", "a. b=1", "a", ".".join("a" * 10_000) + "=1", " =1"]
)
def test_odd_keys_of_overrides(override):
    assert "must look like section.key=value" in message(apply_overrides, {}, [override])


def test_odd_values_of_overrides():
    assert "override a=" in message(apply_overrides, {}, ["a=" + "9" * 5000])
    assert "nested more than" in message(apply_overrides, {}, ["a=" + "[" * 5000])
    assert "U+DC80" in message(apply_overrides, {}, ["a\udc80=1"])


def test_files_that_are_no_files_are_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", "/dev/stdin", tmp_path / "pipe", tmp_path):
        assert "cannot read" in message(load_tree, path)
    (tmp_path / "own.yaml").write_text(f"base: {tmp_path / 'pipe'}")
    told = message(load_tree, tmp_path / "own.yaml")
    assert "own.yaml: base: " in told and "pipe: it is not a file" in told
    assert "cannot read" in message(load_tree, "a\0b")
    assert "cannot read" in message(load_tree, "a" * 5000)


def test_bases(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml\nk{i}: 1")
    (tmp_path / "60.yaml").write_text("end: 1")
    assert "more than 20 files" in message(load_tree, tmp_path / "0.yaml")
    assert load_tree(tmp_path / "45.yaml")["end"] == 1
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    assert "cannot read" in message(load_tree, tmp_path / "loop.yaml")


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa: 1", b"a: 1"])
def test_a_byte_order_mark_is_passed_over(tmp_path, content):
    (tmp_path / "own.yaml").write_bytes(content)
    assert load_tree(tmp_path / "own.yaml") == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"# nothing", "a: 1".encode("utf-16"), b"\x00", b"\xff"])
def test_files_without_keys(tmp_path, content):
    (tmp_path / "own.yaml").write_bytes(content)
    assert "own.yaml" in message(load_tree, tmp_path / "own.yaml")


def test_variables_are_expanded_once_and_must_be_text(monkeypatch):
    monkeypatch.setenv("ONE", "${TWO}")
    monkeypatch.setenv("TWO", "2")
    assert expand_variables({"a": ["${ONE}-${TWO}"]}, "r.yaml") == {"a": ["${TWO}-2"]}
    monkeypatch.setenv("TWO", "\udc80")
    assert "a: the value of the environment variable TWO" in message(expand_variables, {"a": "${TWO}"}, "r.yaml")


def test_an_unknown_home_is_refused_in_words(recipe_tree):
    recipe_tree["data"]["store"] = "~nobody-of-that-name/x"
    assert "data.store: there is no home folder for" in message(validate, Recipe, recipe_tree, "r.yaml")


def test_thousands_of_wrong_keys_are_counted_and_long_values_cut(recipe_tree):
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, recipe_tree | {f"k{i}": 1 for i in range(3000)} | {"seed": "x" * 100_000}, "r.yaml")
    text = str(caught.value)
    assert len(text) < 20_000 and "more" in text.splitlines()[-1]


def test_unclean():
    assert unclean("a\tb\nc é 日本") is None
    assert unclean("a\x7f") and unclean("\x9b") and unclean("\udc80")
