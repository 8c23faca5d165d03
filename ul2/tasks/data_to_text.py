"""Text from data: dialogue acts, tables and triples, as GEM and TFDS have them.

    schema_guided_dialogue   acts of a system, after what its user said  -> its words
    totto                    cells of a table, with its titles           -> a sentence
    web_nlg                  triples of a graph                          -> sentences

Structure is written in words, brackets, `;`, `|` and `=`, which the vocabularies of T5
and UL2 have; they lack the `<` of the tags that some baselines use. The first reference
is the target; metrics look at all.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ul2.tasks.metrics import bleu, rouge
from ul2.tasks.multiple_choice import one_line
from ul2.tasks.text_task import Row, TextExample, TextTask, Tfds

# GEM's numbers of the acts, in TFDS's order of their names.
DIALOG_ACTS: Final = (
    "AFFIRM",
    "AFFIRM_INTENT",
    "CONFIRM",
    "GOODBYE",
    "INFORM",
    "INFORM_COUNT",
    "INFORM_INTENT",
    "NEGATE",
    "NEGATE_INTENT",
    "NOTIFY_FAILURE",
    "NOTIFY_SUCCESS",
    "OFFER",
    "OFFER_INTENT",
    "REQUEST",
    "REQUEST_ALTS",
    "REQ_MORE",
    "SELECT",
    "THANK_YOU",
)


def schema_guided_dialogue_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of the system's acts and the user's last words.

    inputs   say: OFFER(city = Rome); REQ_MORE service: Travel_1 prompt: Go where?
    targets  How about Rome? Anything else?
    """
    acts = row["dialog_acts"]
    written = "; ".join(
        _act(DIALOG_ACTS[act], slot, list(values))
        for act, slot, values in zip(
            acts["act"], acts["slot"], acts["values"], strict=True
        )
    )
    prompt = one_line(row["prompt"])
    inputs = f"say: {written} service: {row['service']} prompt: {prompt}"
    meta = {"dialog": row["dialog_id"], "turn": int(row["turn_id"])}
    yield from _with_references(row, inputs, meta)


def totto_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of the highlighted cells, each with the headers that stand over it.

    page       Ann Lee         Year  Film   Role
    section    Films           1999  Dawn   Eve       (highlighted: Dawn, Eve)

    inputs   describe: page: Ann Lee section: Films cells: Dawn (Film) | Eve (Role)
    targets  Ann Lee was Eve in Dawn.
    """
    table = _Table(row["table"])
    cells = " | ".join(
        table.cell_with_headers(int(line), int(column))
        for line, column in row["highlighted_cells"]
    )
    page = one_line(row["table_page_title"])
    section = one_line(row["table_section_title"])
    inputs = f"describe: page: {page} section: {section} cells: {cells}"
    meta = {"id": row["example_id"], "overlap": row["overlap_subset"]}
    yield from _with_references(row, inputs, meta)


def web_nlg_examples(row: Row) -> Iterator[TextExample]:
    """Makes one of triples of subject, predicate and object.

    inputs   describe: Rome | country | Italy; Italy | leader | Ann Lee
    targets  Rome is in Italy, which Ann Lee leads.
    """
    triples = "; ".join(one_line(triple) for triple in row["input"])
    meta = {"id": row["webnlg_id"], "category": row["category"]}
    yield from _with_references(row, f"describe: {triples}", meta)


class _Table:
    """A table of ToTTo: rows of cells, some of which span columns.

    Args:
        table: for each of TFDS's features of a cell, the rows of its values.
    """

    def __init__(self, table: Row) -> None:
        self._values = [list(map(one_line, values)) for values in table["value"]]
        self._is_header = [list(map(bool, flags)) for flags in table["is_header"]]
        # The columns that each cell covers, from left to right. As in ToTTo's own
        # baselines, a cell that spans rows does not move those in the rows below.
        self._columns = [_covered(spans) for spans in table["column_span"]]

    def cell_with_headers(self, row: int, cell: int) -> str:
        """Returns a cell and its headers: "Dawn (Film)", "Dawn (1999; Film)".

        Headers are those left of it in its row, and those above it in its columns.
        """
        columns = self._columns[row][cell]
        headers = [
            self._values[row][left]
            for left in range(cell)
            if self._is_header[row][left]
        ]
        for above in range(row):
            headers += [
                value
                for value, is_header, covered in zip(
                    self._values[above],
                    self._is_header[above],
                    self._columns[above],
                    strict=True,
                )
                if is_header and _overlap(columns, covered)
            ]
        named = [header for header in dict.fromkeys(headers) if header]
        value = self._values[row][cell]
        return f"{value} ({'; '.join(named)})" if named else value


def _covered(spans: Sequence[int]) -> list[range]:
    """Returns the columns of the cells of a row: [1, 2] -> [0..0, 1..2]."""
    columns = []
    start = 0
    for span in spans:
        columns.append(range(start, start + max(1, int(span))))
        start = columns[-1].stop
    return columns


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _act(act: str, slot: str, values: Sequence[str]) -> str:
    """Writes an act: REQ_MORE, REQUEST(city), OFFER(city = Rome, Oslo)."""
    listed = ", ".join(one_line(value) for value in values)
    inside = " = ".join(part for part in (slot, listed) if part)
    return f"{act}({inside})" if inside else act


def _with_references(
    row: Row, inputs: str, meta: dict[str, Any]
) -> Iterator[TextExample]:
    """Makes the example of a row of GEM's: `references` is empty in training data."""
    given = [row["target"], *row["references"]]
    references = [text for text in dict.fromkeys(map(one_line, given)) if text]
    if references:
        meta["references"] = references
        yield TextExample(inputs=inputs, targets=references[0], meta=meta)


def _references(example: TextExample) -> list[str]:
    references: list[str] = list(example.meta["references"])
    return references


def _task(
    name: str,
    config: str,
    to_examples: Callable[[Row], Iterator[TextExample]],
    validation_metric: str,
    splits: Sequence[str] = ("train", "validation", "test"),
) -> TextTask:
    return TextTask(
        name=name,
        source=Tfds(f"gem/{config}:1.1.0", {split: split for split in splits}),
        to_examples=to_examples,
        target=_references,
        metrics=(bleu, rouge),
        validation_metric=validation_metric,
        inputs_length=512,
        targets_length=128,
    )


TASKS: Final[tuple[TextTask, ...]] = (
    _task(
        "schema_guided_dialogue",
        "schema_guided_dialog",
        schema_guided_dialogue_examples,
        "rougeL",
    ),
    # Its test set is hidden.
    _task("totto", "totto", totto_examples, "bleu", ("train", "validation")),
    _task("web_nlg", "web_nlg_en", web_nlg_examples, "bleu"),
)
