"""Batches against a worked example, their own contract, and seqio's converters."""

import numpy as np
import pytest
from data_toys import EOS, examples_of, make_stream, make_vocab

from ul2.data.features import to_batch
from ul2.data.packing import ARCHITECTURES, Packing, pack
from ul2.denoising.denoisers import Examples

S, TEXT = 9, (11, 12, 13)


def make_examples(pairs):
    """Returns one denoiser's examples from lists of tokens."""

    def pad(rows):
        lengths = np.array([len(row) for row in rows], np.int64)
        tokens = np.zeros((len(rows), lengths.max()), np.int32)
        for row, own in zip(tokens, rows, strict=True):
            row[: len(own)] = own
        return tokens, lengths

    inputs, targets = zip(*pairs, strict=True)
    return Examples(*pad(inputs), *pad(targets))


def make_packing(rows, per_row, widths, views):
    return Packing(rows, per_row, widths, views, 1, 0.0, (), False)


def columns_of(packed, row, example):
    """Returns where an example stands in its row, by `columns`."""
    columns = packed.columns[row, example]
    return columns[columns >= 0]


WORKED = [((S, *TEXT, EOS), (14, 15, EOS))]


def test_encoder_decoder_reads_the_worked_example():
    packing = make_packing(1, 1, (8, 4), (6, 5))
    batch = to_batch((make_examples(WORKED),), np.array([[0]]), packing, make_vocab())
    assert batch.encoder.tokens.tolist() == [[9, 11, 12, 13, 1, 0, 0, 0]]
    assert batch.encoder.segment_ids.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert batch.encoder.positions.tolist() == [[0, 1, 2, 3, 4, 0, 0, 0]]
    assert batch.encoder.columns.tolist() == [[[0, 1, 2, 3, 4, -1]]]
    assert batch.decoder.tokens.tolist() == [[0, 14, 15, 0]]
    assert batch.decoder.segment_ids.tolist() == [[1, 1, 1, 0]]
    assert batch.decoder.columns.tolist() == [[[0, 1, 2, -1, -1]]]
    assert batch.targets.tolist() == [[14, 15, 1, 0]]
    assert batch.loss_weights.tolist() == [[1, 1, 1, 0]]
    assert batch.denoiser_ids.tolist() == [[0, 0, 0, -1]]
    assert batch.prefix_lengths.tolist() == [[0]]


def test_decoder_only_reads_the_worked_example():
    packing = make_packing(1, 1, (10,), (9,))
    batch = to_batch((make_examples(WORKED),), np.array([[0]]), packing, make_vocab())
    assert batch.encoder is None
    assert batch.decoder.tokens.tolist() == [[0, 9, 11, 12, 13, 1, 14, 15, 0, 0]]
    assert batch.targets.tolist() == [[9, 11, 12, 13, 1, 14, 15, 1, 0, 0]]
    assert batch.loss_weights.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 0, 0]]
    assert batch.prefix_lengths.tolist() == [[6]]
    assert batch.decoder.columns.tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7, -1]]]


def test_packed_row_is_the_picture_of_the_batch_contract():
    examples = make_examples(
        [((11, 12, 13), (7,)), ((21, 22), (7,)), ((31, 32, 33), (7,))]
    )
    packing = make_packing(1, 3, (10, 4), (3, 1))
    batch = to_batch((examples,), np.array([[0, 1, 2]]), packing, make_vocab())
    encoder = batch.encoder
    assert encoder.tokens.tolist() == [[11, 12, 13, 21, 22, 31, 32, 33, 0, 0]]
    assert encoder.segment_ids.tolist() == [[1, 1, 1, 2, 2, 3, 3, 3, 0, 0]]
    assert encoder.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 0, 0]]
    assert encoder.columns.tolist() == [[[0, 1, 2], [3, 4, -1], [5, 6, 7]]]


def test_every_packed_example_starts_anew():
    # Shifting must not carry a target over into the next example.
    examples = make_examples([((5,), (14, 15, EOS)), ((6,), (16, EOS))])
    dealt = np.array([[1, 0]])
    packing = make_packing(1, 2, (2, 5), (1, 3))
    both = to_batch((examples,), dealt, packing, make_vocab())
    assert both.targets.tolist() == [[16, 1, 14, 15, 1]]
    assert both.decoder.tokens.tolist() == [[0, 16, 0, 14, 15]]
    alone = to_batch((examples,), dealt, make_packing(1, 2, (7,), (4,)), make_vocab())
    assert alone.targets.tolist() == [[6, 16, 1, 5, 14, 15, 1]]
    assert alone.decoder.tokens.tolist() == [[0, 6, 16, 0, 5, 14, 15]]
    assert alone.loss_weights.tolist() == [[0, 1, 1, 0, 1, 1, 1]]
    assert alone.prefix_lengths.tolist() == [[2, 2]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("objective", ["ul2", "unilm"])
def test_columns_segments_and_positions_tell_the_same(architecture, objective):
    stream = make_stream(objective)
    packing = pack(stream, architecture)
    composition = stream.plan(0).composition
    dealt = packing.deal(composition)
    examples = stream.examples(0)
    batch = to_batch(examples, dealt, packing, stream.vocab)
    pairs = [pair for made in examples for pair in examples_of(made)]
    denoisers = np.repeat(np.arange(len(composition)), composition)
    for row, n in np.ndindex(dealt.shape):
        inputs, targets = pairs[dealt[row, n]]
        learned = targets
        if architecture == "encoder_decoder":
            own = columns_of(batch.encoder, row, n)
            np.testing.assert_array_equal(batch.encoder.tokens[row, own], inputs)
        else:
            learned = np.concatenate([inputs, targets])
        own = columns_of(batch.decoder, row, n)
        np.testing.assert_array_equal(batch.targets[row, own], learned)
        assert batch.loss_weights[row, own].sum() == len(targets)
        assert (batch.loss_weights[row, own][-len(targets) :] == 1).all()
        assert (batch.denoiser_ids[row, own] == denoisers[dealt[row, n]]).all()
        for side in (batch.encoder, batch.decoder):
            if side is not None:
                own = columns_of(side, row, n)
                assert (side.segment_ids[row, own] == n + 1).all()
                assert side.positions[row, own].tolist() == list(range(len(own)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_arrays_have_the_dtypes_and_shapes_of_the_contract(architecture):
    stream = make_stream()
    packing = pack(stream, architecture)
    batch = to_batch(
        stream.examples(0),
        packing.deal(stream.plan(0).composition),
        packing,
        stream.vocab,
    )
    sides = [side for side in (batch.encoder, batch.decoder) if side is not None]
    for side, width, view in zip(sides, packing.widths, packing.views, strict=True):
        for array in side[:3]:
            assert array.shape == (packing.rows, width)
        assert side.columns.shape == (packing.rows, packing.examples_per_row, view)
        assert {array.dtype for array in side} == {np.dtype(np.int32)}
        padding = side.segment_ids == 0
        assert (side.tokens[padding] == 0).all()
        assert (side.positions[padding] == 0).all()
    padding = batch.decoder.segment_ids == 0
    assert (batch.targets[padding] == 0).all()
    assert (batch.loss_weights[padding] == 0).all()
    assert (batch.denoiser_ids[padding] == -1).all()
    assert batch.loss_weights.dtype == np.float32
    assert batch.targets.dtype == batch.denoiser_ids.dtype == np.int32
    assert batch.prefix_lengths.dtype == np.int32
    assert batch.prefix_lengths.shape == dealt_shape(packing)


def dealt_shape(packing):
    return packing.rows, packing.examples_per_row


def converted(converter, pairs, length):
    """Runs one of seqio's feature converters over examples, without packing."""
    import tensorflow as tf

    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": i, "targets": t} for i, t in pairs),
        output_signature={
            side: tf.TensorSpec([None], tf.int32) for side in ("inputs", "targets")
        },
    )
    lengths = {"inputs": length, "targets": length}
    rows = converter(pack=False)(dataset, task_feature_lengths=lengths)
    return list(rows.as_numpy_iterator())


@pytest.fixture(scope="module")
def packed_and_pairs():
    stream = make_stream()
    examples = stream.examples(0)
    pairs = [pair for made in examples for pair in examples_of(made)]

    def batch_for(architecture):
        packing = pack(stream, architecture)
        dealt = packing.deal(stream.plan(0).composition)
        return dealt, to_batch(examples, dealt, packing, stream.vocab)

    return batch_for, pairs


@pytest.mark.tf
def test_encoder_decoder_examples_are_those_of_seqio(packed_and_pairs):
    seqio = pytest.importorskip("seqio")
    batch_for, pairs = packed_and_pairs
    dealt, batch = batch_for("encoder_decoder")
    wanted = converted(seqio.EncDecFeatureConverter, pairs, 64)
    for row, n in np.ndindex(dealt.shape):
        own = columns_of(batch.encoder, row, n)
        theirs = wanted[dealt[row, n]]
        tokens = batch.encoder.tokens[row, own]
        np.testing.assert_array_equal(
            np.pad(tokens, (0, 64 - len(own))), theirs["encoder_input_tokens"]
        )
        own = columns_of(batch.decoder, row, n)
        for ours, name in (
            (batch.decoder.tokens, "decoder_input_tokens"),
            (batch.targets, "decoder_target_tokens"),
            (batch.loss_weights, "decoder_loss_weights"),
        ):
            # seqio goes on shifting into the padding, where no weight is.
            np.testing.assert_array_equal(
                ours[row, own], theirs[name][: len(own)], name
            )
        assert theirs["decoder_loss_weights"].sum() == len(own)


@pytest.mark.tf
def test_decoder_only_examples_are_those_of_seqio(packed_and_pairs):
    seqio = pytest.importorskip("seqio")
    batch_for, pairs = packed_and_pairs
    dealt, batch = batch_for("decoder_only")
    wanted = converted(seqio.PrefixLMFeatureConverter, pairs, 64)
    for row, n in np.ndindex(dealt.shape):
        own = columns_of(batch.decoder, row, n)
        theirs = wanted[dealt[row, n]]
        prefix = np.arange(len(own)) < batch.prefix_lengths[row, n]
        for ours, name in (
            (batch.decoder.tokens[row, own], "decoder_input_tokens"),
            (batch.targets[row, own], "decoder_target_tokens"),
            (batch.loss_weights[row, own], "decoder_loss_weights"),
            (prefix, "decoder_causal_attention"),
        ):
            np.testing.assert_array_equal(ours, theirs[name][: len(own)], name)
        assert theirs["decoder_loss_weights"][len(own) :].sum() == 0
