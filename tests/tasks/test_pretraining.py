import functools
import importlib

import numpy as np
import pytest

from ul2.denoising.denoisers import merge
from ul2.denoising.mixture import named
from ul2.denoising.moving import moving
from ul2.denoising.ramps import linear
from ul2.tasks.sources import TextSource, read_documents
from ul2.tasks.splits import split_documents

pytestmark = pytest.mark.tf

seqio = pytest.importorskip("seqio")

LENGTHS = {"inputs": 64, "targets": 48}


@pytest.fixture
def registry():
    """Leaves seqio's registry as importing the tasks makes it."""
    importlib.import_module("ul2.tasks.pretraining")
    before = set(seqio.TaskRegistry.names())
    yield seqio.TaskRegistry
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)


@pytest.fixture
def source(tmp_path, texts):
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    return TextSource(files=str(tmp_path / "a.txt"), held_out_share=0.1)


def denoise_dataset(documents, mixture, vocabulary, lengths=LENGTHS, block_tokens=2048):
    import tensorflow as tf

    from ul2.tasks.preprocessors import mixture_of_denoisers

    def read():
        yield from documents

    dataset = tf.data.Dataset.from_generator(
        lambda: ({"targets": row} for row in read()),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )
    feature = seqio.Feature(vocabulary)
    return mixture_of_denoisers(
        dataset,
        lengths,
        {"inputs": feature, "targets": feature},
        mixture=mixture,
        vocab=vocabulary.tokenizer.vocab,
        block_tokens=block_tokens,
    )


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    from ul2.tasks.seqio_vocabulary import TokenizerVocabulary

    return TokenizerVocabulary(tokenizer)


def examples_of(*args, seed=0, **kwargs):
    with seqio.utils.map_seed_manager(seed):
        dataset = denoise_dataset(*args, **kwargs)
    return [(e["inputs"], e["targets"]) for e in dataset.as_numpy_iterator()]


def which_denoiser(mixture, inputs, targets, vocab):
    """The denoisers that could have made an example, by its mode and sentinels."""
    for denoiser in mixture.denoisers:
        try:
            yield denoiser, merge(denoiser, inputs, targets, vocab)
        except ValueError:
            continue


def merge_all(mixture, examples, vocab):
    """The text of examples one after another."""
    texts = [next(which_denoiser(mixture, *e, vocab))[1] for e in examples]
    return np.concatenate(texts)


def make_documents(num_tokens, seed=0):
    rng = np.random.default_rng(seed)
    documents = []
    while (left := num_tokens - sum(len(d) + 1 for d in documents)) > 0:
        length = min(int(rng.integers(1, 90)), left - 1)
        documents.append(rng.integers(60, 400, max(length, 1)).astype(np.int32))
    return documents


@pytest.mark.parametrize("num_tokens", [*range(2400, 2412), 2, 3, 700, 10_000])
def test_no_text_is_lost_and_eos_stands_between_documents(vocabulary, num_tokens):
    vocab = vocabulary.tokenizer.vocab
    mixture = named("ul2", cap_spans=True)
    documents = make_documents(num_tokens)
    documents.insert(1, np.zeros(0, np.int32))  # an empty one leaves no trace
    examples = examples_of(documents, mixture, vocabulary)
    joined = np.concatenate([np.append(d, 1) for d in documents if len(d)])
    merged = merge_all(mixture, examples, vocab)
    # An EOS that would be a block by itself is no text.
    assert len(joined) - len(merged) in (0, 1)
    np.testing.assert_array_equal(merged, joined[: len(merged)])
    for inputs, targets in examples:
        assert len(inputs) <= LENGTHS["inputs"]
        assert len(targets) <= LENGTHS["targets"]
        assert inputs[-1] == targets[-1] == vocab.eos_id
        assert inputs.dtype == targets.dtype == np.int32


def test_shares_are_exact_in_every_block_and_the_order_varies(vocabulary):
    # Modes tell the denoisers of this mixture apart.
    mixture = named("ul2", cap_spans=True)
    vocab = vocabulary.tokenizer.vocab
    mode_of = {vocab.mode(mode)[0]: mode for mode in "RSX"}
    fits = mixture.fit(64, 48, vocab)
    block = sum(fit.text for fit in fits) * 3
    examples = examples_of(
        make_documents(4 * block), mixture, vocabulary, block_tokens=block
    )
    modes = [mode_of[int(inputs[0])] for inputs, _ in examples]
    orders = [tuple(modes[i : i + 21]) for i in range(0, 84, 21)]
    assert len(modes) == 84
    for order in orders:
        assert [order.count(mode) for mode in "RSX"] == [6, 3, 12]
    assert len(set(orders)) == 4


def test_seed_decides_the_examples(vocabulary):
    documents = make_documents(3000)
    mixture = named("ul2", cap_spans=True)
    one, same, other = (
        examples_of(documents, mixture, vocabulary, seed=seed) for seed in (1, 1, 2)
    )
    assert all(
        np.array_equal(a, b)
        for x, y in zip(one, same, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert any(len(a[0]) != len(b[0]) for a, b in zip(one, other, strict=False))


def test_what_cannot_fit_is_refused(vocabulary):
    mixture = named("ul2")
    with pytest.raises(ValueError, match="set INPUTS_LENGTH and TARGETS_LENGTH"):
        denoise_dataset([], mixture, vocabulary, lengths={"targets": 48})
    with pytest.raises(ValueError, match="set INPUTS_LENGTH and TARGETS_LENGTH"):
        denoise_dataset([], mixture, vocabulary, lengths=None)
    with pytest.raises(ValueError, match="sentinels needed by denoiser 'x_3_50'"):
        denoise_dataset([], mixture, vocabulary, {"inputs": 512, "targets": 512})


def test_standard_tasks_are_registered_over_their_sources(tokenizer, registry):
    from ul2.tasks.pretraining import register_pretraining_tasks

    mixture = named("ul2", cap_spans=True)
    names = register_pretraining_tasks(tokenizer, mixture)
    assert names == ("c4_v310_ul2", "embedded_ul2")
    c4 = registry.get("c4_v310_ul2")
    assert isinstance(c4.source, seqio.TfdsDataSource)
    assert c4.source.tfds_dataset.name == "c4/en:3.1.0"
    assert set(c4.splits) == {"train", "validation"}
    assert set(c4.output_features) == {"inputs", "targets"}
    last = c4.preprocessors[-1]
    assert isinstance(last, functools.partial)
    assert last.keywords["mixture"] == mixture
    with pytest.raises(ValueError, match="'c4_v310_ul2' is registered already"):
        register_pretraining_tasks(tokenizer, mixture)
    other = register_pretraining_tasks(tokenizer, named("prefix_lm"), "prefix_lm")
    assert other == ("c4_v310_prefix_lm", "embedded_prefix_lm")


def test_task_whose_data_is_not_there_is_refused_in_one_line(tmp_path, monkeypatch):
    from ul2.tasks.task_documents import read_task_documents

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="set TFDS_DATA_DIR") as refused:
        next(read_task_documents("c4_v310", "text", 0.02))
    assert "'c4_v310'" in str(refused.value)
    assert "tfds build" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_embedded_task_gives_both_splits(tokenizer, registry):
    from ul2.tasks.pretraining import register_pretraining_tasks

    _, name = register_pretraining_tasks(tokenizer, named("ul2", cap_spans=True))
    for split in ("train", "validation"):
        dataset = registry.get(name).get_dataset(
            LENGTHS, split=split, shuffle=False, seed=0
        )
        example = next(dataset.as_numpy_iterator())
        assert 2 < len(example["inputs"]) <= 64
        assert 1 < len(example["targets"]) <= 48


def test_text_task_refuses_missing_files_when_registered(tokenizer, registry):
    from ul2.tasks.pretraining import register_text_task

    with pytest.raises(ValueError, match=r"no file matches 'none\.txt'"):
        register_text_task(
            "ours", TextSource(files="none.txt"), tokenizer, named("prefix_lm")
        )


def text_of_split(source, split, tokenizer):
    """Every document of a split, EOS behind each."""
    documents = split_documents(read_documents(source), source.held_out_share)
    rows = [tokenizer.encode(d.text) for name, d in documents if name == split]
    return np.concatenate([[*row, tokenizer.vocab.eos_id] for row in rows])


def unpack(tokens, segments):
    """The examples of one packed row."""
    return [tokens[segments == i] for i in range(1, segments.max() + 1)]


@pytest.mark.parametrize("pack", [False, True])
def test_encoder_decoder_batches_give_the_text_back(tokenizer, registry, source, pack):
    from ul2.tasks.pretraining import register_text_task

    mixture = named("ul2", cap_spans=True)
    register_text_task("ours", source, tokenizer, mixture)
    lengths = LENGTHS if not pack else {"inputs": 128, "targets": 128}
    dataset = seqio.get_dataset(
        mixture_or_task_name="ours",
        task_feature_lengths=lengths,
        dataset_split="train",
        shuffle=False,
        feature_converter=seqio.EncDecFeatureConverter(pack=pack),
        seed=3,
    )
    examples = []
    for row in dataset.as_numpy_iterator():
        inputs, targets = row["encoder_input_tokens"], row["decoder_target_tokens"]
        if pack:
            examples += zip(
                unpack(inputs, row["encoder_segment_ids"]),
                unpack(targets, row["decoder_segment_ids"]),
                strict=True,
            )
        else:
            examples.append((inputs[inputs != 0], targets[targets != 0]))
    wanted = text_of_split(source, "train", tokenizer)
    merged = [merge_all(mixture, [e], tokenizer.vocab) for e in examples]
    if not pack:
        np.testing.assert_array_equal(np.concatenate(merged), wanted)
    # Packing may reorder the examples.
    whole = wanted.astype(np.int32).tobytes()
    assert sum(map(len, merged)) == len(wanted)
    assert all(text.tobytes() in whole for text in merged)


def test_prefix_lm_batches_give_the_text_back(tokenizer, registry, source):
    from ul2.tasks.pretraining import register_text_task

    mixture = named("prefix_lm")
    register_text_task("ours", source, tokenizer, mixture)
    dataset = seqio.get_dataset(
        mixture_or_task_name="ours",
        task_feature_lengths=LENGTHS,
        dataset_split="validation",
        shuffle=False,
        feature_converter=seqio.PrefixLMFeatureConverter(pack=False),
        seed=3,
    )
    merged = []
    for row in dataset.as_numpy_iterator():
        tokens = row["decoder_target_tokens"]
        weights = row["decoder_loss_weights"]
        targets = tokens[weights == 1]
        prefix = tokens[: int(np.argmax(weights == 1))]
        assert targets[-1] == tokenizer.vocab.eos_id
        merged.append(merge_all(mixture, [(prefix, targets)], tokenizer.vocab))
    wanted = text_of_split(source, "held_out", tokenizer)
    np.testing.assert_array_equal(np.concatenate(merged), wanted)


def test_mixture_that_moves_is_refused(vocabulary):
    mixture = moving(named("ul2"), rates={"s": linear(1, 4, steps=9)})
    with pytest.raises(ValueError, match="a mixture that moves needs a token store"):
        denoise_dataset([[11, 12]], mixture, vocabulary)
