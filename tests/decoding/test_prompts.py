"""Examples to groups of one shape, and to rows of few sizes."""

import pytest

from ul2.decoding.prompts import Example, by_room


def example(place, inputs, forced=0, blanks=-1):
    return Example(place, place, [9] * inputs, [7] * forced, blanks, 8)


def laid_out(examples, *, has_encoder, at_once=2):
    """Returns the rooms, the columns read, and who reads them."""
    return [
        (
            (room.inputs, room.prompt),
            [((s.inputs, s.prompt), [one.place for one in some]) for s, some in groups],
        )
        for room, groups in by_room(examples, has_encoder=has_encoder, at_once=at_once)
    ]


def test_prompts_of_many_lengths_share_rows_the_longest_first():
    examples = [example(n, length) for n, length in enumerate((5, 60, 70, 200, 300, 6))]
    # The example of the module.
    assert laid_out(examples, has_encoder=True) == [
        ((512, 1), [((384, 1), [4])]),
        ((256, 1), [((256, 1), [3]), ((96, 1), [2])]),
        ((64, 1), [((64, 1), [1]), ((8, 1), [0, 5])]),
    ]


def test_groups_keep_the_order_of_their_examples():
    examples = [example(n, 5) for n in range(5)]
    ((_, groups),) = laid_out(examples, has_encoder=True)
    assert [places for _, places in groups] == [[0, 1], [2, 3], [4]]


def test_without_an_encoder_inputs_and_forced_ids_are_the_prompt():
    # The start id is one more.
    examples = [example(0, 60, forced=3), example(1, 60, forced=4)]
    assert laid_out(examples, has_encoder=False) == [
        ((0, 256), [((0, 96), [1])]),
        ((0, 64), [((0, 64), [0])]),
    ]


@pytest.mark.parametrize("has_encoder", [True, False])
def test_those_with_blanks_or_forced_ids_have_rows_of_their_own(has_encoder):
    examples = [example(0, 5), example(1, 5, blanks=0), example(2, 5, forced=1)]
    assert len(laid_out(examples, has_encoder=has_encoder)) == 3
