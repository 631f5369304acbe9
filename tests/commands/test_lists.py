import pytest

from stssl.commands.arguments import CompareCommand, ListCommand


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
