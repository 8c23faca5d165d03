import pytest

from ul2.data.source_kinds import OTHERS, source_kinds


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["/d/a.txt"], ["a"]),
        (["a.jsonl.gz", "b.jsonl.gz"], ["a", "b"]),
        (["/d/wiki-0001.jsonl", "/d/wiki-0002.jsonl", "/d/b.txt"], ["wiki", "b"]),
        (["/d/c4-00001-of-01024.json", "/d/c4-00002-of-01024.json"], ["c4"]),
        (["/d/1.txt", "/d/2.txt"], ["1", "2"]),
        ([f"/d/x/{c}.txt" for c in "abcdefghi"] + ["/d/y/a.txt"], ["x", "y"]),
    ],
)
def test_files_that_differ_by_a_number_are_one_source(sources, names):
    assert list(dict.fromkeys(source_kinds(sources).values())) == names


def test_the_largest_have_names_where_there_are_too_many():
    sources = [f"/d/f{n}/a.txt" for n in range(20) for _ in range(20 - n)]
    kinds = source_kinds(sources)
    assert list(dict.fromkeys(kinds.values())) == [
        *(f"f{n}" for n in range(7)),
        OTHERS,
    ]
    assert set(kinds) == set(sources)
