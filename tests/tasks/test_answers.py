import pytest
from hypothesis import given
from hypothesis import strategies as st

from ul2.tasks.answers import (
    MAX_DIGITS,
    extract_choice,
    extract_number,
    extract_yes_no,
    number_alone,
    spell_number,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So he has 3 + 4 = 7. The answer is 7.", "7"),
        ("The answer is 7", "7"),
        ("the answer is: $1,234.50.", "1234.5"),
        ("The answer is $-5.", "-5"),
        ("The answer is -$5.", "-5"),
        ("The answer is \u22125.", "-5"),
        ("The answer is 50%.", "50"),
        ("The answer is 6.0.", "6"),
        ("The answer is 06.", "6"),
        ("The answer is .5 miles.", "0.5"),
        ("The answer is 2/4.", "0.5"),
        ("The answer is 2/6.", "1/3"),
        ("The answer is -(1/3).", "-1/3"),
        ("The answer is 12km.", "12"),
        ("The answer is 1,234,567 dollars.", "1234567"),
        ("The answer is 10/2 = 5.", "5"),
        ("The answer is -0.", "0"),
        # The first after the first marker: what follows is another question.
        ("The answer is 5. Q: 7 more? A: The answer is 12.", "5"),
        ("He pays 3 and 4. The answer is about 7, not 8.", "7"),
        # Without the marker, or with nothing behind it: the last.
        ("16 - 3 - 4 = 9 eggs, 9 * 2 = 18", "18"),
        ("42", "42"),
        ("There are 12. The answer is unknown.", "12"),
        # A minus between two numbers subtracts.
        ("It is 16-3", "3"),
        ("It is (16)-3", "3"),
        ("It is x=-3", "-3"),
        # No number at all, or one in a word.
        ("The answer is yes.", None),
        ("", None),
        ("item b2", None),
        ("The answer is 5/0", "5"),
    ],
)
def test_number_is_found_by_its_value(text, number):
    assert extract_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("So 25 remain. The answer is (B).", "B"),
        ("The answer is (b).", "B"),
        ("The answer is b.", "B"),
        ("The answer is B", "B"),
        ("The answer is: C) 25", "C"),
        ("The answer is C because 3 > 2.", "C"),
        ("The answer is 25 (D).", "D"),
        ("The answer is (A). Q: Next? A: The answer is (E).", "A"),
        ("b", "B"),
        ("(e)", "E"),
        ("B) 25", "B"),
        ("A car drives. Half of it is (C)", "C"),
        ("A car drives away", None),
        ("The answer is a car.", None),
        ("The answer is (F).", None),
        ("x", None),
        ("", None),
    ],
)
def test_choice_is_found(text, letter):
    assert extract_choice(text) == letter


def test_choice_is_one_of_the_letters():
    assert extract_choice("The answer is (E).", "ABCD") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Bees fly. So the answer is yes.", "yes"),
        ("The answer is No.", "no"),
        ("The answer is yes. Q: And cows? A: The answer is no.", "yes"),
        ("Yes", "yes"),
        ("Yes, there is no problem", "yes"),
        ("There is no doubt: yes", "yes"),
        ("The answer is unknown", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_yes_and_no_are_found(text, answer):
    assert extract_yes_no(text) == answer


@given(st.decimals(-10_000, 10_000, places=3))
def test_equal_values_have_one_spelling(value):
    spelling = spell_number(float(value))
    assert extract_number(f"The answer is {value}.") == spelling
    assert extract_number(f"The answer is {value}00 apples.") == spelling
    assert number_alone(f" {value} ") == spelling
    assert float(spelling) == float(value)


def test_number_alone_is_the_whole_text():
    assert number_alone("5; 15") is None
    assert number_alone("5:45") is None
    assert number_alone("6th") is None


def test_number_beyond_the_digits_is_none():
    assert extract_number("9" * MAX_DIGITS) == "9" * MAX_DIGITS
    assert extract_number("9" * (MAX_DIGITS + 1)) is None
    assert extract_number("The answer is 1/" + "9" * 100_000) == "1"
    assert spell_number(1e300) is None
    assert spell_number(float("nan")) is None


def test_long_texts_are_read_in_linear_time():
    # Quadratic reading of these would take minutes.
    for text in ("1,234" * 50_000, "1/" + "9" * 100_000 + ".5", "-(1/" * 50_000):
        extract_number(text)
        extract_choice(text)
        extract_yes_no(text)
