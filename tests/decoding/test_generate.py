"""What is written, held against the whole model run without a cache."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_fixtures import tiny_config
from vocab_toys import toy_vocab

from ul2.batch import Batch, one_per_row
from ul2.decoding import programs
from ul2.decoding.generate import Generator
from ul2.decoding.settings import DecodingSettings
from ul2.models.decoder_only import DecoderOnly
from ul2.models.encoder_decoder import EncoderDecoder

VOCAB = toy_vocab(
    60,
    128,
    sentinel_ids=(50, 51, 52),
    mode_ids={"[R]": (53,), "[S]": (54,), "[X]": (55,)},
    tokenizer_sha256="toy",
)
# Of one bucket, for both architectures; LONGER is of another.
PROMPTS = [[53, 10, 11, 12, 1], [13, 1], [54, 20, 21, 22, 23, 24, 1]]
LONGER = [9, 8, 7, 6, 5, 9, 8, 7, 6, 5, 1]
CHOICES = (
    {},
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.3, "num_decodes": 3},
    {"num_beams": 3, "num_decodes": 3},
)


@pytest.fixture(scope="module", params=[EncoderDecoder, DecoderOnly])
def model(request):
    layers = {} if request.param is EncoderDecoder else {"num_encoder_layers": 0}
    config = tiny_config(vocab_size=128, **layers)
    return request.param(config, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def generator(model):
    return Generator(model, VOCAB, batch_size=4)


def logits_of(model, prompt, output):
    """Returns the logits of each token of an output and of what follows it."""
    if model.architecture == "encoder_decoder":
        encoder, read, first = one_per_row([prompt], 12), [0, *output], 0
    else:
        encoder, read, first = None, [0, *prompt, *output], len(prompt)
    # Always of one shape: it is compiled once.
    decoder = one_per_row([read], 32)
    zeros = np.zeros(decoder.tokens.shape, np.int32)
    prefixes = np.array([[first + 1 if encoder is None else 0]], np.int32)
    batch = Batch(encoder, decoder, zeros, zeros, zeros, prefixes)
    return np.asarray(model.logits(batch))[0, first : len(read)]


def allowed(logits):
    """Takes out pad and the ids that no tokenizer names."""
    logits = logits.copy()
    logits[..., VOCAB.size :] = -np.inf
    logits[..., VOCAB.pad_id] = -np.inf
    return logits


def log_prob_of(model, prompt, ids, *, forced=0, finished):
    """Returns the log probability of ids behind the forced ones, by the whole model."""
    log_probs = jax.nn.log_softmax(logits_of(model, prompt, ids), axis=-1)
    written = [*ids, VOCAB.eos_id] if finished else ids
    return sum(float(log_probs[n, written[n]]) for n in range(forced, len(written)))


def test_every_token_is_the_likeliest_after_those_before_it(model, generator):
    outputs = generator.generate(PROMPTS, DecodingSettings(max_tokens=8))
    for prompt, (output,) in zip(PROMPTS, outputs, strict=True):
        likeliest = allowed(logits_of(model, prompt, output.ids)).argmax(-1).tolist()
        assert likeliest[: len(output.ids)] == output.ids
        assert output.finished == (len(output.ids) < 8)
        if output.finished:
            assert likeliest[-1] == VOCAB.eos_id
        want = log_prob_of(model, prompt, output.ids, finished=output.finished)
        assert output.log_prob == pytest.approx(want, abs=1e-4)
        assert output.score == output.log_prob


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_output_does_not_depend_on_what_else_is_in_the_batch(generator, choices):
    settings = DecodingSettings(max_tokens=8, **choices)
    numbers = [7, 3, 4]
    together = generator.generate(PROMPTS, settings, numbers=numbers)
    for prompt, number, outputs in zip(PROMPTS, numbers, together, strict=True):
        # Not even in the last bit.
        assert generator.generate([prompt], settings, numbers=[number]) == [outputs]
    crowd = [PROMPTS[1], *PROMPTS, *PROMPTS, LONGER]
    others = [100, *numbers, *range(200, 204)]
    crowded = generator.generate(crowd, settings, numbers=others)
    assert crowded[1:4] == together


def test_examples_take_the_rows_of_those_that_ended(generator, monkeypatch):
    """Four rows; an example with more to write does not hold up the others."""
    taken = []
    go_on = programs.go_on

    def count(program, params, layers, state, *others):
        before = np.asarray(state.columns)
        after = go_on(program, params, layers, state, *others)
        taken.append(int((np.asarray(after.columns) - before).max()))
        return after

    monkeypatch.setattr(programs, "go_on", count)
    settings = DecodingSettings(max_tokens=8)
    rooms = [8, 2, 2, 2, 2, 2, 2, 2, 2, 8]
    ends = []
    for ended in generator.generate_each(
        [PROMPTS[0]] * len(rooms),
        settings,
        max_tokens=rooms,
        forbidden=[VOCAB.eos_id],
    ):
        assert all(len(outputs[0].ids) == rooms[n] for n, outputs in ended.items())
        ends.append(sorted(ended))
    assert ends == [[1, 2, 3], [4, 5, 6], [0, 7, 8, 9]]
    # The first token is the prompt's. Groups of four would take 7 + 1 + 7.
    assert taken == [1, 1, 7]


@pytest.mark.parametrize(
    "choices",
    [*CHOICES, {"temperature": 0.7, "no_repeat_ngram": 2, "num_decodes": 3}],
    ids=str,
)
def test_output_does_not_depend_on_when_it_begins(generator, choices):
    settings = DecodingSettings(max_tokens=8, **choices)
    rng = np.random.default_rng(0)
    rooms = rng.integers(2, 9, 11).tolist()
    prompts = [[*rng.integers(5, 40, n % 6).tolist(), 1] for n in range(11)]
    blanks = [None if n % 3 else 2 for n in range(11)]
    options = {"max_tokens": rooms, "blanks": blanks, "forced": [[7]] * 11}
    for given in ({"max_tokens": rooms}, options):
        crowded = generator.generate(prompts, settings, **given)
        for n, prompt in enumerate(prompts):
            alone = {name: values[n : n + 1] for name, values in given.items()}
            # Not even in the last bit.
            assert [crowded[n]] == generator.generate(
                [prompt], settings, numbers=[n], **alone
            )


def test_drawing_depends_on_seed_number_and_decode(generator):
    settings = DecodingSettings(max_tokens=8, temperature=1.0, num_decodes=4)
    (first,) = generator.generate([PROMPTS[0]], settings)
    assert len({tuple(output.ids) for output in first}) == 4
    assert first == sorted(first, key=lambda output: -output.score)
    (again,) = generator.generate([PROMPTS[0]], settings)
    assert again == first
    (other,) = generator.generate([PROMPTS[0]], settings, numbers=[1])
    assert other != first
    reseeded = dataclasses.replace(settings, seed=1)
    assert generator.generate([PROMPTS[0]], reseeded) != [first]


def test_sampled_output_has_the_models_log_prob_whatever_the_settings(model, generator):
    settings = DecodingSettings(
        max_tokens=6, temperature=0.5, top_k=10, repetition_penalty=1.5, num_decodes=2
    )
    for outputs, prompt in zip(
        generator.generate(PROMPTS, settings), PROMPTS, strict=True
    ):
        for output in outputs:
            want = log_prob_of(model, prompt, output.ids, finished=output.finished)
            assert output.log_prob == pytest.approx(want, abs=1e-4)


def test_forced_ids_begin_the_output_and_count(model, generator):
    forced = [[50], [], [50, 30, 31]]
    settings = DecodingSettings(max_tokens=5)
    outputs = generator.generate(PROMPTS, settings, forced=forced)
    for start, prompt, (output,) in zip(forced, PROMPTS, outputs, strict=True):
        assert output.ids[: len(start)] == start
        assert len(output.ids) <= 5
        likeliest = allowed(logits_of(model, prompt, output.ids)).argmax(-1).tolist()
        assert likeliest[len(start) : len(output.ids)] == output.ids[len(start) :]
        want = log_prob_of(
            model, prompt, output.ids, forced=len(start), finished=output.finished
        )
        assert output.log_prob == pytest.approx(want, abs=1e-4)


def test_eos_ends_an_output_and_is_left_out(model, generator):
    settings = DecodingSettings(max_tokens=8)
    free = [row[0].ids for row in generator.generate(PROMPTS, settings)]
    # Whatever the first row writes first is now what ends a text.
    ending = dataclasses.replace(VOCAB, eos_id=free[0][0], unk_id=1, sentinel_ids=())
    outputs = Generator(model, ending, batch_size=4).generate(PROMPTS, settings)
    assert outputs[0][0].ids == []
    assert outputs[0][0].finished
    for before, (after,) in zip(free, outputs, strict=True):
        if free[0][0] in before:
            assert after.ids == before[: before.index(free[0][0])]
        else:
            assert after.ids[: len(before)] == before


def test_forbidden_ids_are_never_written(generator):
    settings = DecodingSettings(max_tokens=8)
    ((free,),) = generator.generate([PROMPTS[0]], settings)
    ((kept,),) = generator.generate([PROMPTS[0]], settings, forbidden=free.ids)
    assert not set(free.ids) & set(kept.ids)


@pytest.mark.parametrize(
    "choices",
    [{"temperature": 1.0, "num_decodes": 6}, {"num_beams": 4, "num_decodes": 4}],
    ids=str,
)
@pytest.mark.parametrize("max_tokens", [3, 8])
def test_blanks_are_filled_in_order_each_once(generator, choices, max_tokens):
    settings = DecodingSettings(max_tokens=max_tokens, **choices)
    # More than there are rows: some begin when others have ended.
    blanks, rooms = [1, 2, 3, 3, 2, 1], [3, max_tokens, 3, max_tokens, 3, max_tokens]
    for forced in ([], [50]):
        examples = generator.generate(
            [PROMPTS[0]] * 6,
            settings,
            forced=[forced] * 6,
            blanks=blanks,
            max_tokens=rooms,
        )
        for outputs, count, room in zip(examples, blanks, rooms, strict=True):
            assert outputs
            for output in outputs:
                found = [token for token in output.ids if token in VOCAB.sentinel_ids]
                assert found == list(VOCAB.sentinel_ids[:count]), output.ids
                assert len(output.ids) <= room


def test_rows_without_blanks_are_free_beside_rows_with(generator):
    settings = DecodingSettings(max_tokens=8)
    free = generator.generate(PROMPTS, settings)
    mixed = generator.generate(PROMPTS, settings, blanks=[None, 2, None])
    assert [mixed[0], mixed[2]] == [free[0], free[2]]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_no_sequence_of_tokens_is_written_twice(generator, length):
    settings = DecodingSettings(max_tokens=16, no_repeat_ngram=length)
    forbidden = [*range(12, 60), VOCAB.eos_id]
    for (output,) in generator.generate(
        PROMPTS, settings, forbidden=forbidden if length > 1 else [VOCAB.eos_id]
    ):
        ids = output.ids
        grams = [tuple(ids[n : n + length]) for n in range(len(ids) - length + 1)]
        assert len(ids) == 16
        assert len(set(grams)) == len(grams)


def test_repetition_penalty_divides_the_logits_of_what_was_written(model, generator):
    penalty = 1.7
    settings = DecodingSettings(max_tokens=8, repetition_penalty=penalty)
    for prompt, (output,) in zip(
        PROMPTS, generator.generate(PROMPTS, settings), strict=True
    ):
        logits = allowed(logits_of(model, prompt, output.ids))
        for n, token in enumerate(output.ids):
            row = logits[n]
            for seen in set(output.ids[:n]):
                row[seen] = (
                    row[seen] / penalty if row[seen] > 0 else row[seen] * penalty
                )
            assert row.argmax() == token


@pytest.mark.parametrize("rule", ["t5x", "huggingface"])
def test_beams_as_many_as_there_are_outputs_find_the_best(model, generator, rule):
    words, max_tokens, alpha = (5, 6), 3, 0.6
    forbidden = [n for n in range(60) if n not in (*words, VOCAB.eos_id)]
    settings = DecodingSettings(
        max_tokens=max_tokens,
        num_beams=16,
        num_decodes=16,
        length_rule=rule,
        length_penalty=alpha,
    )
    (outputs,) = generator.generate([PROMPTS[0]], settings, forbidden=forbidden)
    every = {}
    for length in range(max_tokens + 1):
        for ids in itertools.product(words, repeat=length):
            finished = length < max_tokens
            if not finished and rule == "t5x":
                continue  # what has not ended is no outcome
            log_prob = log_prob_of(model, PROMPTS[0], list(ids), finished=finished)
            size = length + finished
            worth = ((5 + size) / 6 if rule == "t5x" else size) ** alpha
            every[ids] = (log_prob / worth, log_prob)
    assert len(outputs) == min(len(every), 16)
    best = sorted(every, key=lambda ids: -every[ids][0])
    assert [tuple(output.ids) for output in outputs] == best[: len(outputs)]
    for output in outputs:
        score, log_prob = every[tuple(output.ids)]
        assert output.score == pytest.approx(score, abs=1e-4)
        assert output.log_prob == pytest.approx(log_prob, abs=1e-4)


@pytest.mark.parametrize(
    "choices", [{}, {"temperature": 1.0, "num_decodes": 2}, {"num_beams": 2}], ids=str
)
def test_tokens_arrive_as_they_are_written(generator, choices):
    settings = DecodingSettings(max_tokens=8, **choices)
    heard = {}

    def listen(number, decode, ids):
        heard.setdefault(number, {}).setdefault(decode, []).extend(ids)

    numbers = [4, 9, 2]
    streamed = generator.generate(
        PROMPTS, settings, numbers=numbers, forced=[[], [30], []], on_tokens=listen
    )
    assert streamed == generator.generate(
        PROMPTS, settings, numbers=numbers, forced=[[], [30], []]
    )
    skipped = 0 if settings.num_beams else 1  # a beam tells all of it, at the end
    for number, outputs, forced in zip(numbers, streamed, (0, 1, 0), strict=True):
        told = sorted(heard[number].values())
        assert told == sorted(output.ids[forced * skipped :] for output in outputs)


def test_going_on_does_not_cut_the_stack_anew(model, monkeypatch):
    """It is called for every token that is told of: a cut copies the decoder."""
    read = []
    go_on = programs.go_on

    def look(*given):
        # Arguments that a program does not use are left out of its text.
        read.append(go_on.lower(*given).as_text())
        return go_on(*given)

    monkeypatch.setattr(programs, "go_on", look)
    generator = Generator(model, VOCAB, batch_size=2)
    generator.generate(PROMPTS[:1], DecodingSettings(max_tokens=2))
    kernel = model.decoder.layers.mlp.wo[...].shape
    stacked, one = ("tensor<" + "x".join(map(str, kernel[n:])) + "x" for n in (0, 1))
    assert kernel[0] > 1
    assert stacked not in read[0]
    assert one in read[0]


def test_programs_are_compiled_once_for_lengths_of_one_bucket(model):
    generator = Generator(model, VOCAB, batch_size=2)
    settings = DecodingSettings(max_tokens=10, temperature=0.5)
    generator.generate([[5] * 9 + [1]], settings)
    before = programs.go_on._cache_size(), programs.begin._cache_size()
    for length in (8, 9, 10):
        for temperature in (0.5, 0.9):
            changed = dataclasses.replace(
                settings, temperature=temperature, seed=length, max_tokens=12
            )
            generator.generate([[6] * length + [1]] * 3, changed)
    assert (programs.go_on._cache_size(), programs.begin._cache_size()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forced": [[5, 6]]}, "max_tokens=2 leaves no room behind a prefix of 2"),
        ({"blanks": [3]}, "max_tokens=2 is too few for 3 blanks"),
        ({"max_tokens": [3]}, "max_tokens=3 of an example is more than 2 of all"),
    ],
)
def test_what_has_no_room_is_refused(generator, options, message):
    with pytest.raises(ValueError, match=message):
        generator.generate([[5, 1]], DecodingSettings(max_tokens=2), **options)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"top_p": 0.0}, r"top_p=0.0 is not in \(0, 1\]"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"num_beams": 2, "temperature": 1.0}, "a beam search draws nothing"),
        ({"num_beams": 2, "num_decodes": 3}, "num_decodes=3 is more than num_beams=2"),
        ({"num_decodes": 2}, "set temperature or num_beams"),
        ({"length_rule": "mine"}, "length_rule='mine' is not one of"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        DecodingSettings(**choices)


def test_bfloat16_model_decodes_like_its_own_whole_sequence():
    config = tiny_config(vocab_size=128, dtype="bfloat16")
    model = EncoderDecoder(config, rngs=nnx.Rngs(3))
    ((output,),) = Generator(model, VOCAB, batch_size=1).generate(
        [PROMPTS[2]], DecodingSettings(max_tokens=8)
    )
    log_probs = jax.nn.log_softmax(
        jnp.asarray(logits_of(model, PROMPTS[2], output.ids))
    )
    best = allowed(np.asarray(log_probs)).max(-1)
    for n, token in enumerate(output.ids):
        # bfloat16 keeps three digits: what was chosen may come second by as much.
        assert log_probs[n, token] > best[n] - 0.05
