"""What is shown of a step is what that step trains on."""

import contextlib
import io
import itertools
import json
import time

import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from text_toys import train_foreign
from wiring_toys import flags, make_store

from ul2 import cli, inspection, launch
from ul2.batch import Packed
from ul2.data.corpus import Corpus
from ul2.data.loader import Loader
from ul2.data.run_data import Example
from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder
from ul2.sharding.mesh import make_mesh
from ul2.tasks.tokenizer import open_with_vocab

NAMES = ("r_3_15", "r_8_15", "s", "x_3_50", "x_8_50", "x_64_15", "x_64_50")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("inspection"))


def read(arguments):
    """Returns the recipe of some flags."""
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    bindings = [tuple(pair.split("=", 1)) for pair in pairs]
    return launch.read(files, bindings, launch.NOT_NEEDED_WITHOUT_TRAINING)


def open_data(arguments):
    """Returns a recipe's data, and the tokenizer of its store."""
    recipe = read(arguments)
    data = recipe.open_data(make_mesh(recipe.mesh))
    assert isinstance(data, Corpus)
    return data, open_with_vocab(data.store.tokenizer_path, data.vocab)


def inspect(arguments, *options):
    """Returns the report of `ul2 inspect --json`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["inspect", *arguments, *options, "--json"]) == 0
    return json.loads(out.getvalue().splitlines()[-1])


def examples_in(packed):
    """Yields the tokens of every example in packed rows."""
    for tokens, columns in zip(packed.tokens, packed.columns, strict=True):
        for places in columns:
            yield tuple(tokens[places[places >= 0]].tolist())


@pytest.mark.parametrize("step", [0, 5, 40])
def test_examples_of_a_step_are_those_in_the_loaders_batch(store, step):
    data, _ = open_data(flags(store))
    loader = Loader(data.source("train"))
    loader.seek({**loader.position(), "batch": step})
    batch = next(loader)
    shown = list(data.examples("train", step))
    # The decoder reads its targets shifted right, so their EOS stands in `targets`.
    learned = batch.decoder._replace(tokens=batch.targets)
    loaded = zip(examples_in(batch.encoder), examples_in(learned), strict=True)
    pairs = [(tuple(one.inputs.tolist()), tuple(one.targets.tolist())) for one in shown]
    assert sorted(loaded) == sorted(pairs)
    assert [one.number for one in shown] == list(range(step * 16, step * 16 + 16))
    ids = batch.denoiser_ids[batch.decoder.segment_ids > 0]
    counts = {name: 0 for name in NAMES}
    for one in shown:
        counts[one.denoiser] += len(one.targets)
    assert np.bincount(ids, minlength=7).tolist() == list(counts.values())


def test_json_has_the_text_mode_and_source_of_every_example(store):
    data, tokenizer = open_data(flags(store))
    report = inspect(flags(store), "--step=7")
    assert (report["step"], len(report["examples"])) == (7, 16)
    vocab = tokenizer.vocab
    examples = data.examples("train", 7)
    for shown, example in zip(report["examples"], examples, strict=True):
        assert set(shown) == {
            *("index", "denoiser", "mode", "source", "inputs", "targets")
        }
        assert shown["mode"] == shown["denoiser"][0].upper()
        assert shown["inputs"].startswith(f"[{shown['mode']}]")
        for side in ("inputs", "targets"):
            ids = getattr(example, side).tolist()
            assert shown[side].endswith("<eos>")
            assert shown[side].count("<eos>") == ids.count(vocab.eos_id)
            marks = [
                vocab.sentinel_ids.index(i) for i in ids if i in vocab.sentinel_ids
            ]
            assert marks == list(range(len(marks)))
            assert shown[side].count("<extra_id_") == len(marks)
            assert all(f"<extra_id_{mark}>" in shown[side] for mark in marks)


def test_source_names_the_document_that_an_example_starts_in(store):
    lines = (store.parent / "corpus.jsonl").read_text().splitlines()
    for shown in inspect(flags(store), "--step=3")["examples"]:
        file, _, record = shown["source"].rpartition(":")
        assert file == str(store.parent / "corpus.jsonl")
        text = json.loads(lines[int(record) - 1])["text"]
        if shown["denoiser"] == "s":
            head = shown["inputs"].removeprefix("[S]").partition("<eos>")[0]
            assert head in text


def test_any_step_is_found_without_reading_those_before_it(store):
    data, _ = open_data(flags(store))
    list(data.examples("train", 0))
    began = time.perf_counter()
    far = list(data.examples("train", 10**12))
    assert time.perf_counter() - began < 1
    assert far[0].number == 16 * 10**12
    assert len(far) == 16


def test_held_out_examples_come_from_held_out_documents(store):
    sources = {
        split: {
            shown["source"]
            for step in range(6)
            for shown in inspect(flags(store), f"--step={step}", f"--split={split}")[
                "examples"
            ]
        }
        for split in ("train", "held_out")
    }
    assert sources["held_out"]
    assert not sources["train"] & sources["held_out"]


def test_number_of_examples_is_limited_by_choice(store):
    examples = inspect(flags(store), "--step=2")["examples"]
    assert inspect(flags(store), "--step=2", "--examples=3")["examples"] == examples[:3]


def test_mode_convention_of_the_recipe_is_shown(store):
    report = inspect(flags(store, MODE_CONVENTION="released"))
    starts = {
        shown["mode"]: shown["inputs"].partition("]")[0] for shown in report["examples"]
    }
    assert starts == {"R": "[NLU", "S": "[S2S", "X": "[NLG"}


def test_person_sees_mode_sentinels_and_spans(store):
    data, tokenizer = open_data(flags(store))
    examples = list(data.examples("train", 1))
    example = next(one for one in examples if one.denoiser == "x_3_50")
    console = Console(file=io.StringIO(), width=1000)
    inspection.print_examples([example], tokenizer, console)
    head, inputs, targets = console.file.getvalue().splitlines()[:3]
    assert head.startswith(f"#{example.number}  x_3_50  mode X  ")
    as_json = inspection.to_json(example, tokenizer)
    assert inputs == f"  inputs   {as_json['inputs']}"
    assert targets == f"  targets  {as_json['targets']}"


def test_sentinel_and_its_span_have_one_colour(store):
    data, tokenizer = open_data(flags(store))
    examples = list(data.examples("train", 1))
    example = next(one for one in examples if one.denoiser == "x_3_50")
    inputs = inspection._colour(example.inputs, tokenizer, False)
    targets = inspection._colour(example.targets, tokenizer, True)

    def styles(text):
        return [(text.plain[s.start : s.end], str(s.style)) for s in text.spans]

    colour_of = {t: c.split()[-1] for t, c in styles(inputs) if "extra_id" in t}
    assert len(set(colour_of.values())) > 1
    marked = styles(targets)
    for (text, style), (span, span_style) in itertools.pairwise(marked):
        if "extra_id" in text:
            assert style == f"bold {colour_of[text]}"
            assert "extra_id" not in span
            assert span_style == colour_of[text]


def test_words_keep_their_spaces_with_a_vocabulary_that_drops_the_first(tmp_path):
    tokenizer = train_foreign(tmp_path / "foreign.model")
    vocab = tokenizer.vocab
    ids = tokenizer.encode("the model reads every word")
    for start in range(1, len(ids)):
        masked = [*ids[:start], vocab.sentinel_ids[0], *ids[start:], vocab.eos_id]
        example = Example(
            number=0,
            denoiser="r",
            mode=None,
            source="a:1",
            inputs=np.array(masked, np.int32),
            targets=np.array([vocab.eos_id], np.int32),
        )
        shown = inspection.to_json(example, tokenizer)["inputs"]
        head, tail = shown.split("<extra_id_0>")
        assert head + tail == "the model reads every word<eos>"


def drawn(batch):
    """Returns the masks as `print_masks` draws them: title to boolean square."""
    console = Console(file=io.StringIO(), width=200)
    inspection.print_masks(batch, console)
    squares = {}
    for block in console.file.getvalue().strip().split("\n\n"):
        title, *lines = block.splitlines()
        squares[title] = np.array([[cell == "█" for cell in line] for line in lines])
    return squares


def first_row(packed, copies):
    """Returns copies of the first row."""
    return packed and Packed(*(np.repeat(array[:1], copies, 0) for array in packed))


def influence(model, batch, side):
    """Returns whether the output at i moves with the token at j, in one row."""
    packed = batch.encoder if side == "cross" else getattr(batch, side)
    width = packed.tokens.shape[1]
    rows = first_row(packed, width + 1)
    rows.tokens[np.arange(width), np.arange(width)] += 1
    if side == "encoder":
        outputs = nnx.jit(lambda model, rows: model.encode(rows))(model, rows)
    else:
        prefixes = np.repeat(batch.prefix_lengths[:1], width + 1, 0)
        sides = {
            "encoder": first_row(batch.encoder, width + 1),
            "decoder": first_row(batch.decoder, width + 1),
            "encoder" if side == "cross" else "decoder": rows,
        }
        read = batch._replace(**sides, prefix_lengths=prefixes)
        outputs = nnx.jit(lambda model, read: model(read))(model, read)
    outputs = np.asarray(outputs)
    return (np.abs(outputs[:-1] - outputs[-1]).max(-1) > 0).T


@pytest.mark.parametrize(
    ("model", "architecture", "sides"),
    [
        ("enc_dec_tiny", EncoderDecoder, ("encoder", "decoder", "cross")),
        ("dec_only_tiny", DecoderOnly, ("decoder",)),
    ],
)
def test_masks_are_drawn_as_the_model_sees(store, model, architecture, sides):
    data, tokenizer = open_data(
        flags(store, model=model, INPUTS_LENGTH=20, TARGETS_LENGTH=20)
    )
    batch = data.source("train")[2]
    recipe = read(flags(store, model=model))
    config = recipe.model_config(vocab_size=tokenizer.vocab.padded_size)
    # Through one layer, a token moves exactly what sees it.
    built = architecture(config, rngs=nnx.Rngs(0))
    squares = drawn(batch)
    count = 0
    for side in sides:
        sees = influence(built, batch, side)
        queries = batch.encoder if side == "encoder" else batch.decoder
        keys = batch.decoder if side == "decoder" else batch.encoder
        for number, (rows, places) in enumerate(
            zip(queries.columns[0], keys.columns[0], strict=True)
        ):
            rows, places = rows[rows >= 0], places[places >= 0]
            title = f"{side}, example {number}, {len(rows)} tokens"
            title += f" read {len(places)}" if side == "cross" else ""
            np.testing.assert_array_equal(squares[title], sees[np.ix_(rows, places)])
            others = np.setdiff1d(np.arange(sees.shape[1]), places)
            assert not sees[np.ix_(rows, others)].any()
            count += 1
    assert count == len(squares)


def test_long_masks_are_thinned_out(store):
    lengths = {"INPUTS_LENGTH": 96, "TARGETS_LENGTH": 96}
    data, _ = open_data(flags(store, **lengths))
    assert {square.shape for square in drawn(data.source("train")[0]).values()} >= {
        (48, 48)
    }


def test_masks_of_a_step_are_drawn_for_a_person(store, capsys):
    assert cli.main(["inspect", *flags(store), "--masks", "--examples=1"]) == 0
    shown = capsys.readouterr().out
    assert "encoder, example 0, " in shown
    assert "decoder, example 1, " in shown
    assert shown.count("mode ") == 1
