"""What a new run takes over from a trained model, and what it refuses to."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from checkpoint_toys import make_checkpoint, save
from flax import traverse_util
from training_toys import (
    ToyBatches,
    ToyModel,
    make_settings,
    make_vocab,
    rewrite_contract,
    run_train,
)

from ul2.interop import own
from ul2.interop.checkpoint import Moments
from ul2.interop.tensors import cast, from_array
from ul2.models import architectures
from ul2.sharding.mesh import make_mesh
from ul2.training.checkpoints import (
    Contract,
    load_model,
    opt_state_shapes,
    read_contract,
    read_params,
)
from ul2.training.optimizers import adafactor, adamw
from ul2.training.origin import of_arrays, of_run
from ul2.training.schedules import constant, linear
from ul2.training.state import abstract_state, define_model, with_shardings


class StoppedError(Exception):
    """The machine went away."""


def falling(step):
    return 0.05 / (step + 1.0)


def batches_from(first, stop=None):
    def on_next(index):
        if index == stop:
            raise StoppedError

    batches = ToyBatches(on_next=on_next)
    batches.index = first
    return batches


def lines_of(model_dir):
    text = (model_dir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [(line["loss"], line["learning_rate"]) for line in lines]


def params_of(model_dir, mesh):
    model = define_model(ToyModel)
    abstract, shardings = abstract_state(
        ToyModel, adafactor(1.0, model.param_axes), mesh
    )
    wanted = with_shardings(abstract, shardings).params
    return jax.device_get(read_params(model_dir, wanted))


def abstract_of(make_model, optimizer=adafactor, mesh=None, **settings):
    """Returns the shapes and shardings of a whole state."""
    param_axes = define_model(make_model).param_axes
    rule = optimizer(constant(0.01), param_axes, **settings)
    mesh = mesh or make_mesh("auto", jax.devices()[:1])
    return with_shardings(*abstract_state(make_model, rule, mesh))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six updates that nobody disturbed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    run_train(path, schedule=falling)
    return path


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The first three of them."""
    path = tmp_path_factory.mktemp("half") / "run"
    run_train(path, schedule=falling, settings=make_settings(total_steps=3))
    return path


def go_on(path, source, *, first=3, stop=None, keep=True, steps=3, **changes):
    settings = make_settings(total_steps=steps, save_every_steps=1)
    return run_train(
        path,
        settings=settings,
        batches=batches_from(first, stop),
        origin=of_run(source),
        keep_optimizer=keep,
        **{"schedule": falling, **changes},
    )


def test_kept_optimizer_goes_on_bitwise_as_if_the_run_had_never_ended(
    whole, half, tmp_path, one_device
):
    assert go_on(tmp_path, half).step == 3
    assert lines_of(tmp_path) == lines_of(whole)[3:]
    params = params_of(tmp_path, one_device)
    jax.tree.map(np.testing.assert_array_equal, params, params_of(whole, one_device))
    contract = read_contract(tmp_path)
    assert (contract.step, contract.prior_steps) == (3, 3)
    assert of_run(tmp_path).steps == 6


def test_reset_optimizer_begins_anew(half, whole, tmp_path):
    go_on(tmp_path, half, keep=False)
    (first, *_), expected = lines_of(tmp_path), lines_of(whole)
    assert first[0] == expected[3][0]
    assert first[1] == expected[0][1] != expected[3][1]
    assert read_contract(tmp_path).prior_steps == 0
    assert of_run(tmp_path).steps == 3


def test_kept_run_resumes_bitwise_without_its_source(whole, half, tmp_path, one_device):
    source = shutil.copytree(half, tmp_path / "source")
    with pytest.raises(StoppedError):
        go_on(tmp_path / "run", source, stop=5)
    shutil.rmtree(source)
    run_train(
        tmp_path / "run",
        schedule=falling,
        settings=make_settings(total_steps=3, save_every_steps=1),
    )
    assert lines_of(tmp_path / "run") == lines_of(whole)[3:]
    assert read_contract(tmp_path / "run").prior_steps == 3
    jax.tree.map(
        np.testing.assert_array_equal,
        params_of(tmp_path / "run", one_device),
        params_of(whole, one_device),
    )


def test_any_step_of_a_run_can_be_the_origin(whole, half, tmp_path):
    assert of_run(whole).steps == of_run(whole / "checkpoints").steps == 6
    go_on(tmp_path, whole / "checkpoints" / "3")
    assert lines_of(tmp_path) == lines_of(whole)[3:]


def test_steps_done_before_add_up_over_runs(half, whole, tmp_path):
    go_on(tmp_path / "second", half, steps=1)
    go_on(tmp_path / "third", tmp_path / "second", first=4, steps=2)
    assert lines_of(tmp_path / "third") == lines_of(whole)[4:]
    assert read_contract(tmp_path / "third").prior_steps == 4


def test_state_of_adamw_is_kept_too(tmp_path):
    run_train(tmp_path / "whole", optimizer=adamw, schedule=falling)
    short = make_settings(total_steps=3)
    run_train(tmp_path / "half", optimizer=adamw, schedule=falling, settings=short)
    go_on(tmp_path / "next", tmp_path / "half", optimizer=adamw)
    assert lines_of(tmp_path / "next") == lines_of(tmp_path / "whole")[3:]


def test_what_cannot_be_kept_is_refused_in_one_line(half, tmp_path):
    origin = of_run(half)
    other = abstract_of(ToyModel, adamw).opt_state
    with pytest.raises(ValueError, match=r"another optimizer \(no .*INITIAL_OPTIMIZER"):
        origin.check_optimizer(other)
    factored = abstract_of(ToyModel, min_dim_size_to_factor=8).opt_state
    pattern = r"factored: v_row\.\w+ is .*MIN_DIM_SIZE_TO_FACTOR and FACTOR_STACKED"
    with pytest.raises(ValueError, match=pattern):
        origin.check_optimizer(factored)
    with pytest.raises(ValueError, match=r"rate is 0 at all 9 .*SCHEDULE_STEPS=12"):
        origin.check_schedule(linear(1.0, total_steps=3), 9)
    origin.check_schedule(linear(1.0, total_steps=4), 9)

    copy = shutil.copytree(half, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "3" / "train_state")
    with pytest.raises(ValueError, match=r"has no optimizer state to keep.*=reset"):
        of_run(copy).check_optimizer(factored)


CHECKPOINT = make_checkpoint("ul2")
MODEL = architectures.to_json(CHECKPOINT.architecture, CHECKPOINT.config)


def open_arrays(checkpoint=CHECKPOINT, moments=None, **changes):
    contract = Contract(
        step=0,
        data_position=None,
        vocab=checkpoint.vocab,
        config_text="",
        mixture=None,
        model=architectures.to_json(checkpoint.architecture, checkpoint.config),
        prior_steps=7,
    )
    fields = {"tokenizer": b"a model", **changes}
    return of_arrays(checkpoint.path, contract, checkpoint.params, moments, **fields)


def model_with(**changes):
    config = dataclasses.replace(CHECKPOINT.config, **changes)
    return architectures.to_json("encoder_decoder", config)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            model_with(mlp_dim=64, num_heads=2),
            r"num_heads 3, not 2, mlp_dim 40, not 64;",
        ),
        (model_with(vocab_size=256), r"vocab_size 128, not 256; set DATA"),
        (
            {**MODEL, "architecture": "decoder_only"},
            r"architecture 'encoder_decoder', n",
        ),
    ],
)
def test_other_model_is_refused_field_by_field(model, message):
    with pytest.raises(ValueError, match=message):
        open_arrays().check(CHECKPOINT.vocab, model)


def test_what_parameters_do_not_depend_on_may_differ():
    same = model_with(
        dtype="bfloat16", remat="full", dropout_rate=0.1, num_kv_heads=3, rope_theta=5.0
    )
    open_arrays().check(CHECKPOINT.vocab, same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mode_convention": "paper"},
            r"'released' conv.*set MODE_CONVENTION=released",
        ),
        ({"eos_id": 3}, r"another vocabulary \(eos_id differ\); set DATA"),
        ({"sentinel_ids": (117, 118)}, r"\(sentinel_ids differ\)"),
        ({"tokenizer_sha256": "1"}, r"\(tokenizer_sha256 differ\)"),
    ],
)
def test_other_vocabulary_of_a_run_is_refused(changes, message):
    origin = open_arrays()
    every = [field.name for field in dataclasses.fields(CHECKPOINT.vocab)]
    origin = dataclasses.replace(origin, vocab_fields=every)
    with pytest.raises(ValueError, match=message):
        origin.check(dataclasses.replace(CHECKPOINT.vocab, **changes), MODEL)


def test_what_others_do_not_say_of_their_vocabulary_is_not_compared():
    paper = dataclasses.replace(CHECKPOINT.vocab, mode_convention="paper")
    open_arrays().check(paper, MODEL)
    own_tokenizer = dataclasses.replace(paper, tokenizer_sha256="1")
    open_arrays(tokenizer=None).check(own_tokenizer, MODEL)
    with pytest.raises(ValueError, match="tokenizer_sha256 differ"):
        open_arrays(tokenizer=b"a model").check(own_tokenizer, MODEL)


def test_rows_that_were_padding_may_become_sentinels():
    more = {"size": 124, "sentinel_ids": (119, 118, 117, 120, 121, 122, 123)}
    open_arrays().check(dataclasses.replace(CHECKPOINT.vocab, **more), MODEL)


def random_moments(step=7):
    """Returns moments as Adafactor has them that factors all stacked kernels."""
    make_model = architectures.make_model(CHECKPOINT.architecture, CHECKPOINT.config)
    state = abstract_of(make_model, factor_stacked="always").opt_state[0]
    rng = np.random.default_rng(1)

    def draw(tree):
        flat = traverse_util.flatten_dict(tree, sep=".")
        return {
            path: from_array(path, rng.uniform(size=leaf.shape).astype(np.float32))
            for path, leaf in flat.items()
            if leaf.shape[-1] > 1
        }

    return Moments(
        step=step, **{s: draw(getattr(state, s)) for s in ("v_row", "v_col", "v")}
    )


@pytest.mark.parametrize("form", ["arrays", "imported"])
def test_moments_of_others_become_the_state_of_the_optimizer(form, tmp_path):
    moments = random_moments()
    checkpoint = dataclasses.replace(CHECKPOINT, moments=moments)
    if form == "arrays":
        origin = open_arrays(moments=moments)
    else:
        origin = of_run(save(own.write, checkpoint, tmp_path / "out"))
    assert origin.steps == 7
    make_model = architectures.make_model(CHECKPOINT.architecture, CHECKPOINT.config)
    mesh = make_mesh("fsdp=2,tensor=2", jax.devices()[:4])
    abstract = abstract_of(make_model, mesh=mesh, factor_stacked="always")
    origin.check_optimizer(abstract.opt_state)
    state, schedule = jax.device_get(origin.read_opt_state(abstract))
    assert (int(state.step), int(schedule.count)) == (7, 7)
    for slot in ("v_row", "v_col", "v"):
        found = traverse_util.flatten_dict(getattr(state, slot), sep=".")
        expected = getattr(moments, slot)
        assert expected
        for path, array in found.items():
            wanted = expected[path].read() if path in expected else 0
            np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("form", ["arrays", "imported"])
def test_bfloat16_parameters_are_read_in_float32_into_shards(form, tmp_path):
    half = {
        path: cast(one, ml_dtypes.bfloat16) for path, one in CHECKPOINT.params.items()
    }
    checkpoint = dataclasses.replace(CHECKPOINT, params=half)
    if form == "arrays":
        origin = open_arrays(checkpoint)
    else:
        origin = of_run(save(own.write, checkpoint, tmp_path / "out"))
    make_model = architectures.make_model(CHECKPOINT.architecture, CHECKPOINT.config)
    mesh = make_mesh("fsdp=2,tensor=2", jax.devices()[:4])
    params = origin.read_params(abstract_of(make_model, mesh=mesh).params)
    for path, array in traverse_util.flatten_dict(params, sep=".").items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, half[path].read().astype(np.float32))
    assert len(params["embedder"]["embedding"].addressable_shards) == 4


def test_checkpoint_is_a_model_by_itself(tmp_path, one_device):
    run = save(own.write, CHECKPOINT, tmp_path / "out")
    assert opt_state_shapes(run, 0) is None
    expected = np.asarray(CHECKPOINT.params["embedder.embedding"].read())
    for path in (run, run / "checkpoints", run / "checkpoints" / "0"):
        model, contract = load_model(path, one_device)
        np.testing.assert_array_equal(model.embedder.embedding[...], expected)
        assert contract.model == MODEL
        assert contract.vocab == CHECKPOINT.vocab
    with pytest.raises(ValueError, match=r"no checkpoint of step 5 in .*; found \[0\]"):
        load_model(run / "checkpoints" / "0", one_device, step=5)


def test_checkpoint_from_before_models_were_written_goes_on_but_is_not_loaded(
    half, tmp_path, one_device
):
    copy = shutil.copytree(half, tmp_path / "old")
    file = copy / "checkpoints" / "3" / "contract" / "metadata"
    fields = json.loads(file.read_text())
    assert fields["model"] is None and fields["prior_steps"] == 0
    rewrite_contract(copy, 3, model="absent", prior_steps="absent")
    with pytest.raises(ValueError, match=r"step 3 does not say which model it holds"):
        load_model(copy, one_device)
    assert run_train(copy, schedule=falling).step == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -3}, "step=-3 is no number"),
        ({"step": "3"}, "step='3' is no number"),
        ({"step": 4}, "says that it is step 4"),
        ({"vocab": {}}, "vocab contract: missing"),
        ({"vocab": None}, "damaged"),
    ],
)
def test_damaged_contract_is_refused_with_its_place(half, tmp_path, changes, message):
    copy = shutil.copytree(half, tmp_path / "copy")
    rewrite_contract(copy, 3, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_contract(copy)
    assert "checkpoints/3" in str(error.value)
    assert "\n" not in str(error.value)


def test_contract_is_the_same_after_json():
    contract = Contract(
        step=3,
        data_position={"index": 3},
        vocab=make_vocab(),
        config_text="a = 1",
        mixture={"denoisers": []},
        model=MODEL,
        prior_steps=4,
    )
    assert Contract.from_json(json.loads(json.dumps(contract.to_json()))) == contract
