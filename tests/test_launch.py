"""What a recipe says is what happens, or is refused before anything is written."""

import json
import math
import shutil

import numpy as np
import pytest
from wiring_toys import flags, make_store

import ul2
from ul2 import cli, launch
from ul2.data.token_store import TokenStore
from ul2.data.token_store_writer import TokenStoreWriter
from ul2.decoding.settings import DecodingSettings
from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer
from ul2.training import checkpoints


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("launch"))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A run of one update."""
    model_dir = tmp_path_factory.mktemp("runs") / "one"
    assert cli.main(["train", *flags(store, MODEL_DIR=model_dir, TOTAL_STEPS=1)]) == 0
    return model_dir


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory):
    """Random ids under a vocabulary with the 256 sentinels of 1024/1024."""
    folder = tmp_path_factory.mktemp("wide")
    text = ["a word and another word, said twice: a word and another word"] * 9
    tokenizer = open_tokenizer(train_tokenizer(text, 700, 256, folder / "t.model"))
    vocab = tokenizer.vocab
    rng = np.random.default_rng(0)
    first = max(max(vocab.sentinel_ids), *(i for (i,) in vocab.mode_ids.values())) + 1
    with TokenStoreWriter(
        folder / "store", tokenizer=tokenizer.model, vocab=vocab
    ) as writer:
        for split, size in (("train", 60_000), ("held_out", 30_000)):
            tokens = rng.integers(first, vocab.size, size)
            tokens[-1] = vocab.eos_id
            writer.add(split, tokens, np.array([size]), [(split, 1)])
    return folder / "store"


def parse(arguments):
    """Returns the gin files and bindings among flags."""
    files = [a.removeprefix("--gin_file=") for a in arguments if "gin_file" in a]
    pairs = [a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")]
    return files, [tuple(pair.split("=", 1)) for pair in pairs]


def errors_of(arguments):
    return launch.check(*parse(arguments))["errors"]


@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("model", ["enc_dec_tiny", "dec_only_tiny"])
def test_ul2_does_what_the_paper_declares(wide_store, length, model, capfd):
    lengths = {"INPUTS_LENGTH": length, "TARGETS_LENGTH": length}
    recipe = flags(wide_store, model=model, MODEL_DIR="unused", **lengths)
    assert cli.main(["check", *recipe, "--gin.BATCH_SIZE=112", "--json"]) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["errors"] == []
    assert report["padding_fraction"] <= 0.03
    declared = {
        "r_3_15": ("R", 3, 0.15),
        "r_8_15": ("R", 8, 0.15),
        "s": ("S", None, 0.25),
        "x_3_50": ("X", 3, 0.5),
        "x_8_50": ("X", 8, 0.5),
        "x_64_15": ("X", 64, 0.15),
        "x_64_50": ("X", 64, 0.5),
    }
    assert [row["name"] for row in report["denoisers"]] == list(declared)
    for row in report["denoisers"]:
        mode, span_length, density = declared[row["name"]]
        assert (row["mode"], row["noise_density"]) == (mode, density)
        assert row["mean_span_length"] == span_length or mode == "S"
        assert row["rate"] == 1 / 7
        assert math.isclose(row["measured_share"], 1 / 7, rel_tol=1e-12)
        assert row["measured_noise_density"] == pytest.approx(density, rel=0.01)
    needed = {row["name"]: row["sentinels_needed"] for row in report["denoisers"]}
    assert needed["s"] == 0
    assert needed["x_3_50"] == {512: 127, 1024: 255}[length]


@pytest.mark.parametrize(
    ("macro", "value", "kind"),
    [
        ("BATCH_SIZE", "many", "int"),
        ("BATCH_SIZE", "16.0", "int"),
        ("TOTAL_STEPS", "1e3", "int"),
        ("CAP_SPANS", "no", "bool"),
        ("LEARNING_RATE", "high", "float or int"),
        ("EXAMPLES_PER_ROW", "all", "int or None: write a whole number"),
        ("MESH", "None", "str"),
        ("EMBED_DIM", "True", "int"),
    ],
)
def test_macro_of_another_type_is_refused_by_name(store, macro, value, kind):
    (error,) = errors_of(flags(store, MODEL_DIR="unused", **{macro: value}))
    assert error.startswith(f"{macro} = ")
    assert f"is no {kind}" in error


@pytest.mark.parametrize("typed", ["17", "'17'", "1e-3", "(1, 2)", "0x10", "1_000"])
def test_text_that_looks_like_something_else_needs_no_quotes(store, typed):
    recipe = launch.read(*parse(flags(store, MODEL_DIR=typed)))
    assert recipe.model_dir == typed.strip("'")


@pytest.mark.parametrize("typed", ["None", "True"])
def test_nothing_and_truth_are_no_texts(store, typed):
    (error,) = errors_of(flags(store, MODEL_DIR=typed))
    assert error == f"MODEL_DIR = {typed} is no str: write a text"


def test_number_in_a_gin_file_is_told_its_quotes(store, tmp_path):
    (tmp_path / "own.gin").write_text("MODEL_DIR = 17\n")
    recipe = flags(store, MODEL_DIR="-")
    (error,) = errors_of([*recipe, f"--gin_file={tmp_path / 'own.gin'}"])
    assert error == "MODEL_DIR = 17 is no str: write '17'"


@pytest.mark.parametrize(
    ("macro", "value", "message"),
    [
        (
            "DTYPE",
            "float16",
            "dtype='float16' is not one of ['bfloat16', 'float32'] (did you mean "
            "'bfloat16'?); set DTYPE.",
        ),
        ("DROPOUT_RATE", "2", "dropout_rate=2 is not in [0, 1); set DROPOUT_RATE."),
        ("TOTAL_STEPS", "0", "total_steps=0 must be at least 1; set TOTAL_STEPS."),
        ("EVAL_BATCHES", "-1", "EVAL_BATCHES=-1 must be at least 0."),
        ("SEED", "-1", "SEED=-1 must lie in [0, 2**32)."),
    ],
)
def test_refused_value_is_said_without_what_gin_adds(store, macro, value, message):
    recipe = flags(store, MODEL_DIR="unused", **{macro: value})
    assert errors_of(recipe) == [message]


def test_value_that_has_no_default_is_asked_for(store, tmp_path):
    model = tmp_path / "model.gin"
    model.write_text(
        "from __gin__ import dynamic_registration\n"
        "from ul2 import recipe\n"
        "from ul2.models import config\n"
        "from ul2.models import decoder_only\n"
        "recipe.Recipe.model = @decoder_only.DecoderOnly\n"
        "recipe.Recipe.model_config = @config.ModelConfig\n"
        "config.ModelConfig.embed_dim = 16\n"
    )
    files = [str(model), "configs/objectives/ul2.gin", "configs/runs/pretrain.gin"]
    _, bindings = parse(flags(store, MODEL_DIR="unused"))
    known = ("DATA", "TOTAL_STEPS", "INPUTS_LENGTH", "TARGETS_LENGTH", "BATCH_SIZE")
    kept = [pair for pair in bindings if pair[0] in (*known, "MODEL_DIR")]
    (error,) = launch.check(files, kept)["errors"]
    assert "'num_heads', 'head_dim', 'mlp_dim'" in error
    assert "\n" not in error


def test_check_sees_what_training_would_stumble_over(store, run, tmp_path):
    (tmp_path / "file").write_text("")
    (error,) = errors_of(flags(store, MODEL_DIR=tmp_path / "file" / "run"))
    assert error.startswith(f"cannot write to {tmp_path}/file/run: {tmp_path}/file ")
    recipe = flags(store, MODEL_DIR="unused", INITIAL_CHECKPOINT=tmp_path / "none")
    (error,) = errors_of(recipe)
    assert f"no checkpoint at {tmp_path}/none" in error
    assert errors_of(flags(store, MODEL_DIR=run, TOTAL_STEPS=1)) == []
    (error,) = errors_of(flags(store, MODEL_DIR=run, SEED=3))
    assert "another config (SEED: 0 -> 3)" in error


def test_check_writes_nothing(store, tmp_path):
    assert errors_of(flags(store, MODEL_DIR=tmp_path / "a" / "run")) == []
    assert not any(tmp_path.iterdir())


def test_refused_run_keeps_its_files(run, tmp_path):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    other = make_store(tmp_path, num_sentinels=41)
    assert cli.main(["train", *flags(other, MODEL_DIR=run, TOTAL_STEPS=3)]) == 2
    assert {p: p.read_bytes() for p in run.iterdir() if p.is_file()} == before
    assert {path.name for path in before} >= {"config.gin", "tokenizer.model"}


def test_run_starts_from_the_parameters_of_another(store, run, tmp_path):
    macros = {"MODEL_DIR": tmp_path / "next", "INITIAL_CHECKPOINT": run}
    assert cli.main(["train", *flags(store, TOTAL_STEPS=1, SEED=5, **macros)]) == 0
    assert (tmp_path / "next" / "checkpoints" / "1").is_dir()


def test_checkpoint_tells_its_model(store, run):
    contract = checkpoints.read_contract(run)
    given = launch.read(*parse(flags(store, MODEL_DIR=run, TOTAL_STEPS=1)))
    assert contract.model == given.describe_model(contract.vocab)
    assert contract.step == 1


def test_inference_does_not_need_the_store(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "elsewhere")
    monkeypatch.delattr(TokenStore, "open")
    settings = DecodingSettings(max_tokens=3)
    (outputs,) = ul2.load(copy).generate(["the"], modes=["S"], settings=settings)
    assert outputs[0].log_prob < 0


def test_bug_of_a_library_is_no_error_of_the_config(store, monkeypatch):
    def fail(*arguments):
        np.zeros(-1)

    monkeypatch.setattr(launch, "define_model", fail)
    with pytest.raises(ValueError, match="negative dimensions"):
        errors_of(flags(store, MODEL_DIR="unused"))


def test_config_files_are_found_from_any_folder(store, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert errors_of(flags(store, MODEL_DIR="unused")) == []
    own = tmp_path / "own.gin"
    own.write_text("include 'configs/runs/pretrain.gin'\nSEED = 3\n")
    files, bindings = parse(flags(store, MODEL_DIR="unused"))
    assert launch.read([*files, "own.gin"], bindings).seed == 3
    own.write_text("include 'configs/runs/nowhere.gin'\n")
    (error,) = launch.check([*files, "own.gin"], bindings)["errors"]
    assert "configs/runs/nowhere.gin" in error
    assert "\n" not in error
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("objective", "bindings", "needed"),
    [
        ((), (), 256),
        (("ul2",), (), 256),
        (("ul2",), (("INPUTS_LENGTH", "512"), ("TARGETS_LENGTH", "512")), 128),
        (("causal_lm",), (), 0),
    ],
)
def test_sentinels_are_counted_for_a_vocabulary_in_the_making(
    objective, bindings, needed
):
    files = [f"configs/objectives/{name}.gin" for name in objective]
    assert launch.sentinels_needed(files, bindings) == needed
