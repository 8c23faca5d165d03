import pickle

import pytest

from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer

pytestmark = pytest.mark.tf

seqio = pytest.importorskip("seqio")


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    from ul2.tasks.seqio_vocabulary import TokenizerVocabulary

    return TokenizerVocabulary(tokenizer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It was the 7th day.",
        "  two\n\n\tlines  ",
        "▁a ▁▁ b▁",
        "漢字 😀 \x00",
        "x <extra_id_0> [R] [NLU]</s>",
        "6666666 " + "_" * 300,  # ties between equally likely pieces
    ],
)
def test_tensorflow_and_python_give_the_tokenizers_ids(vocabulary, text):
    ids = vocabulary.tokenizer.encode(text)
    assert vocabulary.encode(text) == ids
    assert vocabulary.encode_tf(as_tensor(text)).numpy().tolist() == ids
    assert vocabulary.decode(ids) == text
    if ids:
        decoded = vocabulary.decode_tf(as_tensor(ids)).numpy().decode()
        assert decoded == text


def as_tensor(value):
    import tensorflow as tf

    return tf.constant(value)


def test_vector_of_strings_is_encoded_each(vocabulary, texts):
    ids = vocabulary.encode_tf(as_tensor([*texts[:3], "▁"]))
    assert ids.to_list() == vocabulary.tokenizer.encode([*texts[:3], "▁"])


def test_matrix_of_ids_is_decoded_row_by_row(vocabulary, texts):
    rows = [row[:9] for row in vocabulary.tokenizer.encode(texts[:3])]
    decoded = vocabulary.decode_tf(as_tensor(rows))
    wanted = [vocabulary.decode(row).encode() for row in rows]
    assert decoded.numpy().tolist() == wanted


def test_broken_bytes_become_the_replacement_character(vocabulary):
    ids = vocabulary.encode_tf(as_tensor(b"a\xffb")).numpy()
    assert vocabulary.decode(ids.tolist()) == "a\ufffdb"


def test_ids_agree_with_seqios_own_vocabulary(vocabulary, texts):
    theirs = seqio.SentencePieceVocabulary(str(vocabulary.tokenizer.path))
    assert vocabulary.vocab_size == theirs.vocab_size
    assert vocabulary.eos_id == theirs.eos_id
    for text in texts[:5]:
        assert vocabulary.encode(text) == theirs.encode(text)


def test_special_ids_show_as_text_and_text_stops_at_eos(vocabulary):
    vocab = vocabulary.tokenizer.vocab
    ids = [*vocab.mode("R"), *vocabulary.encode("day "), vocab.sentinel_ids[3], 1, 9]
    assert vocabulary.decode(ids) == "[R]day <extra_id_3>"
    assert vocabulary.decode_tf(as_tensor(ids)).numpy() == b"[R]day <extra_id_3>"
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    assert vocabulary.bos_id is None
    assert vocabulary.extra_ids == 0


def test_encoding_runs_in_a_dataset_and_after_pickling(vocabulary, texts):
    import tensorflow as tf

    again = pickle.loads(pickle.dumps(vocabulary))
    dataset = tf.data.Dataset.from_tensor_slices(texts).map(again.encode_tf)
    rows = [row.tolist() for row in dataset.as_numpy_iterator()]
    assert rows == vocabulary.tokenizer.encode(texts)


def test_vocabularies_are_equal_when_all_ids_are(vocabulary, texts, tmp_path):
    from ul2.tasks.seqio_vocabulary import TokenizerVocabulary

    same = TokenizerVocabulary(open_tokenizer(vocabulary.tokenizer.path))
    assert same == vocabulary
    assert hash(same) == hash(vocabulary)
    other = open_tokenizer(train_tokenizer(texts, 430, 40, tmp_path / "t.model"))
    assert TokenizerVocabulary(other) != vocabulary
