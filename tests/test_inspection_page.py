"""The page of `ul2 inspect` shows the batch that trains, and the model's own masks."""

import html
import re

import numpy as np
import pytest
from browser import fetched_by, is_blank, screenshot
from wiring_toys import flags, make_store

from ul2 import cli, inspection, inspection_page, launch
from ul2.data.run_data import Example
from ul2.denoising.denoisers import merge
from ul2.tasks.example_tokenization import tokenizer_of

NAMES = ("r_3_15", "r_8_15", "s", "x_3_50", "x_8_50", "x_64_15", "x_64_50")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(store):
    path = store.parent / "page.html"
    arguments = ["inspect", *flags(store), "--step=3", f"--html={path}"]
    assert cli.main(arguments) == 0
    return path


def opened(arguments):
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return launch.opened_to_look_at(files, [tuple(p.split("=", 1)) for p in pairs])


def plain(element):
    """Returns the text a person reads, sentinels as their names."""
    named = re.sub(r'<span class="sentinel"[^>]*title="([^"]*)">\d+', r"\1", element)
    return html.unescape(re.sub(r"<[^>]*>", "", named))


@pytest.fixture(params=["enc_dec_tiny", "dec_only_tiny"])
def looked_at(request, store):
    with opened(flags(store, model=request.param)) as data:
        tokenizer = tokenizer_of("tokenizer", data.tokenizer, data.vocab)
        yield data, tokenizer


def test_every_example_is_on_the_page_as_it_is(store, page):
    content = page.read_text()
    shown = re.findall(r'<div class="text clip">(.*?)</div>', content)
    with opened(flags(store)) as data:
        tokenizer = tokenizer_of("tokenizer", data.tokenizer, data.vocab)
        examples = list(data.examples("train", 3))
    assert len(shown) == 3 * len(examples) == 48
    for number, example in enumerate(examples):
        text, inputs, targets = map(plain, shown[3 * number : 3 * number + 3])
        as_json = inspection.to_json(example, tokenizer)
        assert (inputs, targets) == (as_json["inputs"], as_json["targets"])
        denoiser = data.mixture.denoisers[NAMES.index(example.denoiser)]
        merged = merge(denoiser, example.inputs, example.targets, tokenizer.vocab)
        pieces = inspection.pieces(merged, tokenizer)
        assert text == "".join(piece for token, piece in pieces if token is None)


def test_the_text_is_put_together_from_both_sides(store):
    with opened(flags(store)) as data:
        tokenizer = tokenizer_of("tokenizer", data.tokenizer, data.vocab)
    vocab, encode = data.vocab, tokenizer.encode
    first, second = vocab.sentinel_ids[:2]
    example = Example(
        number=0,
        denoiser="r",
        mode=None,
        source="a:1",
        inputs=np.array([*encode("the model"), first, *encode(" this"), second, 1]),
        targets=np.array([first, *encode(" reads"), second, *encode(" long story"), 1]),
    )
    sides = inspection_page._Sides(example, tokenizer, 0)
    assert plain(sides.text()) == "the model reads this long story"
    assert [plain(s) for s in re.findall(r"<span.*?</span>", sides.text())] == [
        *(" reads", " long story")
    ]


def test_masks_of_the_row_are_those_of_its_examples_and_nothing_else(looked_at):
    data, _ = looked_at
    batch = data.source("train")[1]
    for view in inspection.views(batch):
        count = len(view.queries)
        drawn = view.of_row(np.arange(1, count + 1), 10**6)
        for number in range(count):
            queries, keys = view.queries[number], view.keys[number]
            queries, keys = queries[queries >= 0], keys[keys >= 0]
            own = drawn[np.ix_(queries, keys)]
            seen = view.of_example(number, 10**6)
            np.testing.assert_array_equal(own, seen * (number + 1))
            drawn[np.ix_(queries, keys)] = 0
        assert not drawn.any()


def test_examples_on_the_page_are_limited_and_of_all_denoisers(store):
    with opened(flags(store, BATCH_SIZE=56)) as data:
        examples = list(data.examples("train", 0))
    shown = inspection_page.spread_out(examples, 14)
    assert len(shown) == 14
    assert {example.denoiser for example in shown} == set(NAMES)
    assert inspection_page.spread_out(examples, 100) == examples


def test_owners_of_examples_are_their_denoisers(looked_at):
    data, _ = looked_at
    batch = data.source("train")[2]
    owners = inspection_page._owners(batch)
    for row, columns in enumerate(batch.decoder.columns):
        for number, places in enumerate(columns):
            ids = batch.denoiser_ids[row, places[places >= 0]]
            assert set(ids.tolist()) == {owners[row, number]}


def test_hostile_text_of_a_corpus_stays_text(store):
    with opened(flags(store)) as data:
        tokenizer = tokenizer_of("tokenizer", data.tokenizer, data.vocab)
        measured = data.measure()
        batch = data.source("train")[0]
        [example, *_] = data.examples("train", 0)
    hostile = "</script><script>alert(1)</script>"
    example = example._replace(source=hostile, denoiser=hostile)
    made = inspection_page.InspectionPage(data.names, tokenizer, measured)
    content = made.make(0, "train", batch, [example], 16)
    assert "alert(1)" in content
    assert "<script>alert" not in content
    assert fetched_by(content) == []


def test_page_looks_like_something_in_a_browser(page, tmp_path):
    for dark in (False, True):
        pixels, said = screenshot(page, tmp_path, dark=dark)
        assert said == []
        assert not is_blank(pixels)


@pytest.mark.parametrize(("more", "count"), [([], 0), (["--examples=2"], 2)])
def test_terminal_shows_examples_beside_a_page_only_if_told_how_many(
    store, tmp_path, capsys, more, count
):
    page = f"--html={tmp_path / 'page.html'}"
    assert cli.main(["inspect", *flags(store), page, *more]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n  targets  ") == count
    assert "r_3_15" in shown


def test_a_place_that_cannot_be_written_to_is_refused(store, capsys):
    arguments = ["inspect", *flags(store), "--html=/proc/none/page.html"]
    assert cli.main(arguments) == 2
    assert "--html=/proc/none/page.html: " in capsys.readouterr().err
