from decimal import Decimal
from pathlib import Path

import pytest

from stssl.archives.label_cells import read_labels
from stssl.archives.nomenclature import LABELS_19, LABELS_43
from stssl.base.errors import DataError

TABLE = Path("table.csv")
TWO = [["Arable land", "Pastures"], ["Pastures"]]
FORMS = {
    "semicolons": ["Arable land;Pastures", "Pastures"],
    "spaces around": [" Arable land ; Pastures;", " Pastures\n"],
    "lists": TWO,
    "tuples": [tuple(names) for names in TWO],
    "python": [str(names) for names in TWO],
    "json": ['["Arable land","Pastures"]', '["Pastures"]'],
    "json on lines": ['[\n  "Arable land",\n  "Pastures"\n]', '["Pastures"]'],
    "numpy": ["['Arable land' 'Pastures']", "['Pastures']"],
    "numpy 2": ["[np.str_('Arable land'), np.str_('Pastures')]", "[np.str_('Pastures')]"],
    "array": ["array(['Arable land', 'Pastures'], dtype=object)", "array(['Pastures'], dtype='<U8')"],
    "tuple text": ["('Arable land', 'Pastures')", "('Pastures',)"],
    "set": ["{'Arable land', 'Pastures'}", "frozenset({'Pastures'})"],
    "postgres": ['{"Arable land",Pastures}', "{Pastures}"],
    "missing words within": ["['Arable land', None, 'Pastures']", '["Pastures", "nan"]'],
    "twice": ["Arable land;Pastures;Pastures", "Pastures"],
    "other spaces": ["Arable\u00a0land;Pastures", "Pastures"],
}


def read(cells, several=True):
    found = read_labels("labels", cells, several, TABLE)
    return found.classes, [{found.classes[i] for i in row} for row in found.rows]


@pytest.mark.parametrize("form", FORMS)
def test_lists_however_written_are_the_same_classes(form):
    classes, rows = read(FORMS[form])
    assert classes == ("Arable land", "Pastures")
    assert rows == [set(names) for names in TWO]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["Arable land,Pastures", "Pastures"], "row 1 .*column 'labels'.*Only ; divides"),
        (["a,b", "c,d"], "no cell of the column has ';'"),
        (["x;y", "a,b", "a"], "row 2 .*'a' is the class of row 3"),
        (["a / b", "a"], "Only ; divides"),
        (["a/b", "b"], "Only ; divides"),
        (["x", "a|b"], "row 2 .*Only ; divides"),
        (["a\tb"], "has tabs between names"),
        (["a\nb"], "has line breaks between names"),
        (["a b", "a", "b"], "has spaces or words between names"),
        (["a and b", "a", "b"], "Only ; divides"),
        (["a & b", "a", "b"], "Only ; divides"),
        (["a+b", "a", "b"], "Only ; divides"),
        (["[a, b]"], "is a list without quotes"),
        (["[['a'], ['b']]"], "lists in lists"),
        (["['a', ['b']]"], "lists in lists"),
        ([[["a"]]], "something else than names"),
        ([{"a": 1}], "is no name"),
        ([["a;b"]], "';' inside a name"),
        ([[1, 1, 0], [0, 1, 0]], "row 1 .*column 'labels': .*list of numbers"),
        ([[True, False]], "list of numbers"),
        ([[0.5, 0.5]], "list of numbers"),
        (["[1, 1, 0]"], "list of numbers"),
        (["[1 1 0]"], "list of numbers"),
        (["{1,0}"], "list of numbers"),
        (["[1. 0.]"], "list of numbers"),
        (["1;0;1"], "holds numbers"),
        (["0;1", "1;0"], "vector of 0 and 1"),
        (["1 1 0"], "holds numbers"),
        (["1,1,0"], "holds numbers"),
        (["0.1;0.9"], "holds numbers"),
        (["011", "110"], "vector of 0 and 1"),
        (["Forest", "forest"], "row 2 .*differ in spelling only"),
        (["Bare soil", "Baresoil"], "differ in spelling only"),
        (["\uff37ood", "Wood"], "differ in spelling only"),
        ([b"\xff"], "not text in UTF-8"),
    ],
)
def test_a_cell_that_could_be_several_classes_or_numbers_is_an_error(cells, words):
    with pytest.raises(DataError, match=words):
        read(cells)


def test_names_with_commas_stay_whole():
    names = sorted({*LABELS_19, *LABELS_43})
    assert read([";".join(names), names[0]])[0] == tuple(names)
    assert read([name for name in names if "," in name])[0] == tuple(name for name in names if "," in name)
    assert read(['["Forest, evergreen"]', "['Forest']"])[0] == ("Forest", "Forest, evergreen")
    assert read(["Forest, evergreen;Water", "Forest, deciduous"])[0][0] == "Forest, deciduous"
    assert read(["Grass/shrub", "Urban / built-up;Water"])[0] == ("Grass/shrub", "Urban / built-up", "Water")
    assert read(["(mixed)", "Forest (mixed)"])[0] == ("(mixed)", "Forest (mixed)")
    assert read(["Forêt d'épicéas;L'eau", '["L\'eau"]'])[0] == ("Forêt d'épicéas", "L'eau")
    assert read(["Fore\u0302t", "For\u00eat"])[0] == ("For\u00eat",)
    assert read(["3;17", "2"])[0] == ("2", "3", "17")


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "NA", "N/A", "<NA>", "-", "", "  ", None, float("nan")])
@pytest.mark.parametrize("several", [True, False])
def test_words_for_nothing_are_no_class(word, several):
    found = read_labels("label", ["A", word, "B"], several, TABLE)
    assert found.classes == ("A", "B") and found.rows == ((0,), (), (1,))
    assert "1 of 3 rows are unlabeled" in found.notes[0]
    assert not read_labels("label", ["A", "B"], several, TABLE).notes


def test_numbers_have_one_name_each():
    for cells in ([1, 2, 10], [1.0, 2.0, 10.0], ["1", "2.0", "10"], ["1.0", "2", "10.0"], [Decimal(1), 2.0, "10"]):
        assert read(cells, several=False)[0] == ("1", "2", "10")
    assert read([True, False], several=False)[0] == ("False", "True")
    assert read([0, 1, 1], several=False)[0] == ("0", "1")


def test_one_class_a_cell():
    assert read(["['a']", "b", ["c"]], several=False)[0] == ("a", "b", "c")
    for cells in (["['a', 'b']"], [["a", "b"]], ["[1, 0]"], ["a\nb"]):
        with pytest.raises(DataError, match="row 1 below the header, column"):
            read(cells, several=False)
    assert "'a;b' is taken for one class" in read_labels("label", ["a;b", "a"], False, TABLE).notes[0]
    assert "'a,b' is taken for one class" in read_labels("label", ["a,b", "a", "b"], False, TABLE).notes[0]
    assert "'unknown' is taken for a class" in read_labels("label", ["unknown", "a"], False, TABLE).notes[0]
