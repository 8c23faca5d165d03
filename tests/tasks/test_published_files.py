import pytest

from ul2.tasks.published_files import (
    NUMBER,
    read_json_lines,
    read_json_list,
    read_mmlu,
    read_xml_problems,
)

SHAPE = {"question": str, "answer": NUMBER, "options": [{"text": str}]}
GOOD = '{"question": "2+2?", "answer": 4, "options": [{"text": "a"}]}'


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_are_read_and_empty_lines_passed_over(tmp_path):
    path = written(tmp_path / "a.jsonl", f"{GOOD}\n\n{GOOD}")
    rows = list(read_json_lines(path, SHAPE))
    assert [row["answer"] for row in rows] == [4, 4]


def test_json_list_is_read(tmp_path):
    path = written(tmp_path / "a.json", f"[{GOOD}, {GOOD}]")
    assert len(list(read_json_list(path, SHAPE))) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "row 2 is not JSON"),
        (b"\xff{}", "row 2 is not JSON"),
        ("[" * 100_000, "row 2 is not JSON"),
        ('{"question": NaN}', "row 2 is not JSON: NaN"),
        ("[1]", "row 2: the row is list, not an object"),
        ('{"question": "2+2?"}', "row 2: answer is missing"),
        (GOOD.replace("4", '"4"'), "row 2: answer is str, not int or float"),
        (GOOD.replace("4", "true"), "row 2: answer is bool, not int or float"),
        (GOOD.replace('"2+2?"', "null"), "row 2: question is null, not str"),
        (GOOD.replace('[{"text": "a"}]', '"a"'), "row 2: options is str, not a list"),
        (GOOD.replace('"a"', "7"), r"row 2: options\[0\].text is int, not str"),
        (GOOD.replace('"text"', '"t"'), r"row 2: options\[0\].text is missing"),
    ],
)
def test_bad_row_is_told_in_one_line_with_file_and_row(tmp_path, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    path = written(tmp_path / "bad.jsonl", GOOD.encode() + b"\n" + line)
    rows = read_json_lines(path, SHAPE)
    next(rows)
    with pytest.raises(ValueError, match=message) as error:
        next(rows)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_row_of_a_json_list_is_told(tmp_path):
    path = written(tmp_path / "bad.json", f"[{GOOD}, 3]")
    with pytest.raises(ValueError, match=r"bad.json, row 2: the row is int"):
        list(read_json_list(path, SHAPE))
    with pytest.raises(ValueError, match="is dict, not a JSON list"):
        list(read_json_list(written(path, GOOD), SHAPE))
    with pytest.raises(ValueError, match="is not JSON"):
        list(read_json_list(written(path, "[1,"), SHAPE))


def problems(path):
    return list(read_xml_problems(path, ("ID", "Body")))


def test_xml_problems_are_read(tmp_path):
    path = written(
        tmp_path / "a.xml",
        '<?xml version="1.0"?><File><ProblemSet>'
        '<Problem ID="p1" Grade="1"><Body> A &amp; B. </Body><Empty/></Problem>'
        '<Problem ID="p2"><Body>C</Body></Problem></ProblemSet></File>',
    )
    assert problems(path) == [
        {"ID": "p1", "Grade": "1", "Body": "A & B.", "Empty": ""},
        {"ID": "p2", "Body": "C"},
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_entities_is_refused_before_they_expand(tmp_path, encoding):
    bomb = "".join(
        f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "lol"}">' for i in range(12)
    )
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE File [{bomb}]>'
        '<File><Problem ID="p"><Body>&e11;</Body></Problem></File>'
    )
    path = written(tmp_path / "bomb.xml", text.encode(encoding))
    with pytest.raises(ValueError, match=r"bomb.xml has a DOCTYPE"):
        problems(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<File><Problem>", "is not XML"),
        ("", "is not XML"),
        ('<File><Problem ID="p"/></File>', "row 1: Body is missing"),
    ],
)
def test_bad_xml_is_told(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        problems(written(tmp_path / "bad.xml", text))
    assert "\n" not in str(error.value)


def test_mmlu_rows_carry_their_subject(tmp_path):
    path = written(
        tmp_path / "us_history_dev.csv",
        '"Who, and ""when""?\nSay.",1,2,3,4,B\r\n\r\nWhat?,a,b,c,d,D\r\n',
    )
    assert list(read_mmlu(path)) == [
        {
            "subject": "us_history",
            "question": 'Who, and "when"?\nSay.',
            "choices": ["1", "2", "3", "4"],
            "answer": "B",
        },
        {
            "subject": "us_history",
            "question": "What?",
            "choices": ["a", "b", "c", "d"],
            "answer": "D",
        },
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("What?,a,b,c,D", "row 2: 5 columns, not 6"),
        ("What?,a,b,c,d,E", "row 2: the answer is 'E', not one of A, B, C, D"),
        ("What?,a,b,c,d,AB", "row 2: the answer is 'AB'"),
        ("What?,a,b,c,d,", "row 2: the answer is ''"),
        (b"\xff,a,b,c,d,A", "csv is not UTF-8"),
        ("x" * 200_000 + ",a,b,c,d,A", "row 2 is not CSV"),
    ],
)
def test_bad_mmlu_row_is_told(tmp_path, row, message):
    row = row if isinstance(row, bytes) else row.encode()
    path = written(tmp_path / "law_test.csv", b"What?,a,b,c,d,A\n" + row)
    with pytest.raises(ValueError, match=message) as error:
        list(read_mmlu(path))
    assert "\n" not in str(error.value)
