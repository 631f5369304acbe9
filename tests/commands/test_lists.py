import pytest

from stssl.commands.arguments import CompareCommand, ListCommand, ShiftCommand


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("RUN --by country season --bootstrap 1000", "RUN --by country --by season --bootstrap 1000"),
        ("RUN --bootstrap 1000 --by=country,season", "RUN --bootstrap 1000 --by country --by season"),
        ("RUN --by country,season block", "RUN --by country --by season --by block"),
        ("--by country season RUN", "--by country --by season RUN"),
        ("--split test --by country RUN", "--split test --by country RUN"),
        ("--by country --bootstrap 9 RUN", "--by country --bootstrap 9 RUN"),
        ("--by country", "--by country"),
        ("RUN", "RUN"),
    ],
)
def test_an_option_takes_several_words(words, expected):
    assert ListCommand.written_out(words.split()) == expected.split()


def test_runs_follow_against():
    words = "a b --against c d --score mAP --split test"
    assert " ".join(CompareCommand.written_out(words.split())) == (
        "a b --against c --against d --score mAP --split test"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("R --splits a b schedule.steps=9 --plan", "R --splits a --splits b schedule.steps=9 --plan"),
        (
            "--plan R --metadata true,absent --splits a b",
            "--plan R --metadata true --metadata absent --splits a --splits b",
        ),
        ("--splits a b R", "--splits a --splits b R"),
    ],
)
def test_a_change_of_a_key_ends_a_list_of_a_study(words, expected):
    assert " ".join(ShiftCommand.written_out(words.split())) == expected
