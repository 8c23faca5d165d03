"""What a person types: answers, one-line errors, exit codes."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wiring_toys import WORDS, flags, make_store, write_corpus

import ul2
from ul2 import cli, launch, run_files
from ul2.tasks import examples
from ul2.tasks.text_task import TextExample
from ul2.training import loop


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A run of two updates."""
    model_dir = tmp_path_factory.mktemp("run") / "one"
    assert cli.main(["train", *flags(store, MODEL_DIR=model_dir, TOTAL_STEPS=2)]) == 0
    return model_dir


@pytest.fixture
def refuse(capfd):
    """Runs a command that must be refused, and returns the one line that says why."""

    def run_command(*arguments):
        capfd.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run_command


def check(recipe, capfd):
    """Returns the exit code of `ul2 check` and its report."""
    capfd.readouterr()
    code = cli.main(["check", *recipe, "--json"])
    return code, json.loads(capfd.readouterr().out.splitlines()[-1])


# What a config can have wrong.


def test_everything_missing_is_named_at_once_with_its_flag(store, refuse):
    error = refuse("train", *flags(store, DATA="-", TOTAL_STEPS="-"))
    for name in ("DATA", "MODEL_DIR", "TOTAL_STEPS"):
        assert f"add --gin.{name}=VALUE" in error


def test_missing_files_are_named_with_the_folder_to_look_in(refuse):
    error = refuse("train")
    for folder in ("models/NAME", "objectives/NAME", "runs/pretrain"):
        assert f"add --gin_file=configs/{folder}.gin" in error


def test_misspelt_macro_is_refused_with_the_nearest_name(store, tmp_path, refuse):
    error = refuse("train", *flags(store, MODEL_DIR=tmp_path / "r", BATCH_SIZ=8))
    assert "nothing reads BATCH_SIZ (did you mean 'BATCH_SIZE'?)" in error
    assert not (tmp_path / "r").exists()


def test_misspelt_parameter_is_refused(store, tmp_path, refuse):
    macros = {"MODEL_DIR": tmp_path / "r", "optimizers.adafactor.decay_rat": 0.9}
    error = refuse("train", *flags(store, **macros))
    assert "doesn't have a parameter named 'decay_rat'" in error
    assert "--gin.optimizers.adafactor.decay_rat=0.9" in error


def test_misspelt_macro_is_refused_by_every_command(store, tmp_path, refuse):
    assert "nothing reads BATCH_SIZ" in refuse("inspect", *flags(store, BATCH_SIZ=3))
    corpus = write_corpus(tmp_path / "a.jsonl", 60)
    vocab = ["--train_vocab=700", "--gin.INPUT_LENGTH=2048"]
    error = refuse("tokenize", "--text", corpus, "--out", tmp_path / "s", *vocab)
    assert "nothing reads INPUT_LENGTH (did you mean 'INPUTS_LENGTH'?)" in error


def test_dead_binding_is_refused(store, tmp_path, refuse):
    dead = tmp_path / "dead.gin"
    dead.write_text(
        "from __gin__ import dynamic_registration\n"
        "from ul2.training import schedules\n"
        "schedules.cosine.end_fraction = 0.5\n"
    )
    recipe = flags(store, MODEL_DIR=tmp_path / "r")
    error = refuse("train", *recipe, f"--gin_file={dead}")
    assert "schedules.cosine.end_fraction is dead" in error


def test_unknown_gin_file_is_refused_with_the_nearest_name(refuse):
    error = refuse("train", "--gin_file=configs/objectives/ul22.gin")
    assert "did you mean 'configs/objectives/ul2.gin'" in error


def test_broken_gin_file_is_refused_with_file_and_line(tmp_path, refuse):
    broken = tmp_path / "broken.gin"
    broken.write_text("A = 1\nB = = 2\n")
    error = refuse("train", f"--gin_file={broken}")
    assert "broken.gin, line 2" in error


def test_check_lists_every_problem_and_measures_what_it_can(store, capfd):
    code, report = check(flags(store, TOTAL_STEPS="-", MODEL_DIR="-"), capfd)
    assert code == 2
    assert len(report["errors"]) == 2
    assert len(report["denoisers"]) == 7
    code, report = check(flags(store, MODEL_DIR="unused", SEDE=1, LR=2), capfd)
    assert code == 2
    assert sorted(report["errors"]) == [
        "nothing reads LR: remove it",
        "nothing reads SEDE (did you mean 'SEED'?): remove it",
    ]


def test_gin_values_need_no_quotes(store):
    bindings = [("DATA", str(store)), ("MESH", "data=2,fsdp=4"), ("MODEL_DIR", "a/b")]
    files = ("models/enc_dec_tiny", "objectives/ul2", "runs/pretrain")
    recipe = launch.read(
        [f"configs/{name}.gin" for name in files], [*bindings, ("TOTAL_STEPS", "7")]
    )
    assert (recipe.mesh, recipe.model_dir) == ("data=2,fsdp=4", "a/b")
    assert recipe.settings.total_steps == 7


def test_flag_without_value_is_refused(capfd):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "--gin.SEED"])
    assert "write --gin.SEED=VALUE" in capfd.readouterr().err


# What a recipe can ask that cannot be done.


def test_batch_that_does_not_divide_the_mesh_is_refused(store, tmp_path, refuse):
    error = refuse("train", *flags(store, MODEL_DIR=tmp_path / "r", BATCH_SIZE=12))
    assert "BATCH_SIZE=12 does not divide over 8 parts" in error
    assert "such as 16" in error


def test_mesh_that_does_not_fit_the_devices_is_refused(store, tmp_path, refuse):
    error = refuse("train", *flags(store, MODEL_DIR=tmp_path / "r", MESH="data=3"))
    assert "MESH" in error
    assert "8" in error


def test_too_few_sentinels_are_refused_with_both_ways_out(store, tmp_path, capfd):
    wide = {"INPUTS_LENGTH": 256, "TARGETS_LENGTH": 256, "MODEL_DIR": tmp_path / "r"}
    code, report = check(flags(store, **wide), capfd)
    (error,) = report["errors"]
    assert code == 2
    assert "63 sentinels needed by denoiser 'x_3_50' at 256/256" in error
    assert "has 40" in error
    assert "--num_sentinels=63" in error
    assert "CAP_SPANS = True" in error
    code, report = check(flags(store, CAP_SPANS=True, **wide), capfd)
    assert code == 0
    assert max(row["sentinels_needed"] for row in report["denoisers"]) == 40


def test_text_too_short_for_the_lengths_is_refused(store, tmp_path, refuse):
    long = {"INPUTS_LENGTH": 9000, "TARGETS_LENGTH": 9000, "CAP_SPANS": True}
    error = refuse("train", *flags(store, MODEL_DIR=tmp_path / "r", **long))
    assert "one round of the mixture takes" in error


def test_negative_step_is_refused(store, refuse):
    assert "--step=-1" in refuse("inspect", *flags(store), "--step=-1")


# What a run directory can hold.


def test_directory_of_another_run_is_refused_with_the_difference(run, store, refuse):
    recipe = flags(store, MODEL_DIR=run, TOTAL_STEPS=3, LEARNING_RATE=0.5)
    error = refuse("train", *recipe)
    assert "another config (LEARNING_RATE: 1.0 -> 0.5)" in error


def test_run_goes_on_under_another_mesh_and_length(run, store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    recipe = flags(store, MODEL_DIR=copy, TOTAL_STEPS=3, MESH="data=2,tensor=4")
    assert cli.main(["train", *recipe]) == 0
    assert (copy / "checkpoints" / "3").is_dir()


def test_steps_that_a_schedule_reads_cannot_change(store, tmp_path, refuse):
    macros = {"MODEL_DIR": tmp_path / "r", "run": "pretrain_adamw", "WARMUP_STEPS": 1}
    assert cli.main(["train", *flags(store, **macros, TOTAL_STEPS=2)]) == 0
    error = refuse("train", *flags(store, **macros, TOTAL_STEPS=4))
    assert "another config (TOTAL_STEPS: 2 -> 4)" in error


def test_fewer_steps_than_were_made_are_refused(run, store, refuse):
    error = refuse("train", *flags(store, MODEL_DIR=run, TOTAL_STEPS=1))
    assert "holds step 2" in error
    assert "TOTAL_STEPS" in error


def test_store_of_another_tokenizer_is_refused(run, tmp_path, refuse):
    other = make_store(tmp_path, num_sentinels=41)
    error = refuse("train", *flags(other, MODEL_DIR=run, TOTAL_STEPS=3))
    assert "vocab" in error
    assert "tokenizer" in error


def test_store_of_other_text_is_refused(run, store, tmp_path, refuse):
    write_corpus(tmp_path / "corpus.jsonl", seed=7)
    shutil.copy(store / "tokenizer.model", tmp_path / "same.model")
    source = [f"--text={tmp_path}/corpus.jsonl", f"--vocab={tmp_path}/same.model"]
    again = tmp_path / "again"
    assert cli.main(["tokenize", *source, "--held_out=0.2", "--out", str(again)]) == 0
    error = refuse("train", *flags(again, MODEL_DIR=run, TOTAL_STEPS=3))
    assert "data position is of another stream" in error


def test_run_keeps_who_set_what(run, capfd):
    capfd.readouterr()
    assert cli.main(["config", str(run), "--json"]) == 0
    config = json.loads(capfd.readouterr().out)["config"]
    assert config["TOTAL_STEPS"]["set_by"] == "--gin.TOTAL_STEPS"
    assert config["SEED"]["set_by"].startswith("configs/runs/loop.gin:")
    assert config["optimizers.adafactor.decay_rate"]["set_by"] == "default"
    # Every value that the run used is known.
    text = (run / "config.gin").read_text()
    assert config.keys() == run_files.statements(text).keys()
    assert not any("config.gin" in one["set_by"] for one in config.values())


def test_finished_run_is_told_again(run, store, capfd):
    recipe = flags(store, MODEL_DIR=run, TOTAL_STEPS=2)
    assert cli.main(["train", *recipe, "--json"]) == 0
    report = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert report["step"] == 2
    assert set(report["evaluation"]["denoisers"]) == {
        *("r_3_15", "r_8_15", "s", "x_3_50", "x_8_50", "x_64_15", "x_64_50")
    }


def test_damaged_store_is_refused(store, tmp_path, refuse):
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    (file,) = damaged.glob("train-*.tokens")
    os.truncate(file, 100)
    error = refuse("train", *flags(damaged, MODEL_DIR=tmp_path / "r"))
    assert file.name in error


def test_unwritable_directory_is_refused(store, tmp_path, refuse):
    (tmp_path / "file").write_text("")
    error = refuse("train", *flags(store, MODEL_DIR=tmp_path / "file" / "run"))
    assert "choose another MODEL_DIR" in error


# What text can be.


def tokenize(text, out, *options):
    vocab = ("--train_vocab=400", "--num_sentinels=8")
    return ["tokenize", "--text", text, "--out", out, *vocab, *options]


def test_text_that_is_not_there_or_empty_is_refused(tmp_path, refuse):
    out = tmp_path / "out"
    assert "no file matches" in refuse(*tokenize(tmp_path / "*.txt", out))
    (tmp_path / "empty.txt").write_text("")
    assert "no text" in refuse(*tokenize(tmp_path / "empty.txt", out))
    (tmp_path / "table.csv").write_text("a,b")
    assert "cannot read this kind" in refuse(*tokenize(tmp_path / "table.csv", out))
    assert not out.exists()


def test_broken_line_is_named_and_refused_or_skipped_by_choice(tmp_path, refuse, capfd):
    corpus = write_corpus(tmp_path / "a.jsonl", 60)
    lines = corpus.read_bytes().splitlines()
    lines[4] = b'{"text": "caf\xe9"}'
    lines[9] = b'{"text": '
    corpus.write_bytes(b"\n".join(lines))
    out = tmp_path / "out"
    assert f"{corpus}:5" in refuse(*tokenize(corpus, out))
    arguments = map(str, tokenize(corpus, out, "--on_error=skip", "--json"))
    assert cli.main([*arguments]) == 0
    captured = capfd.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["skipped"], sum(report["documents"].values())) == (2, 58)
    assert f"{corpus}:5" in captured.err
    assert f"{corpus}:10" in captured.err


def test_store_that_exists_is_refused(store, tmp_path, refuse):
    corpus = write_corpus(tmp_path / "a.jsonl", 60)
    before = (store / "manifest.json").read_bytes()
    assert "--overwrite" in refuse(*tokenize(corpus, store))
    assert (store / "manifest.json").read_bytes() == before


def test_sentinels_are_sized_by_the_objective(tmp_path, capfd):
    corpus = tmp_path / "a.jsonl.gz"
    plain = write_corpus(tmp_path / "a.jsonl", 60)
    corpus.write_bytes(gzip.compress(plain.read_bytes()))
    arguments = ["tokenize", "--text", str(corpus), "--train_vocab=700", "--out"]
    assert cli.main([*arguments, str(tmp_path / "wide")]) == 0
    vocab = json.loads((tmp_path / "wide" / "manifest.json").read_text())["vocab"]
    assert len(vocab["sentinel_ids"]) == 256  # UL2 at 1024/1024
    small = ["--gin_file=configs/objectives/span_corruption.gin"]
    small += ["--gin.INPUTS_LENGTH=512", "--gin.TARGETS_LENGTH=512"]
    assert cli.main([*arguments, str(tmp_path / "small"), *small]) == 0
    vocab = json.loads((tmp_path / "small" / "manifest.json").read_text())["vocab"]
    assert len(vocab["sentinel_ids"]) == 28


# The rest.


def test_stopped_run_is_not_done(store, monkeypatch, capfd):
    stopped = loop.TrainSummary(1, {}, {}, preempted=True)
    monkeypatch.setattr(launch, "train", lambda recipe: stopped)
    assert cli.main(["train", *flags(store, MODEL_DIR="unused")]) == 75
    assert "the same command goes on from here" in capfd.readouterr().err


def test_check_says_which_batch_would_pad_less(store, capfd):
    code, report = check(flags(store, MODEL_DIR="unused", BATCH_SIZE=8), capfd)
    assert code == 0
    (warning,) = report["warnings"]
    assert "BATCH_SIZE=112 fills the rows of 8 parts better than 8" in warning


def test_bug_of_ours_keeps_its_traceback(store, monkeypatch):
    def fail(*arguments, **options):
        json.loads("{")

    monkeypatch.setattr(launch, "check", fail)
    with pytest.raises(ValueError, match="Expecting property name"):
        cli.main(["check", *flags(store)])


def test_infer_fills_every_row_of_a_file(run, tmp_path):
    rows = [{"inputs": "the ___ reads"}, {"inputs": "rivers", "mode": "S", "id": 7}]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["infer", "--checkpoint", run, "--input", source, "--output", out]
    assert cli.main([*map(str, arguments), "--max_tokens=4", "--mode=R"]) == 0
    first, second = map(json.loads, out.read_text().splitlines())
    assert (first["mode"], second["mode"], second["id"]) == ("R", "S", 7)
    assert first["prediction"].startswith("<extra_id_0>")
    assert first["filled"].startswith("the ")
    assert "filled" not in second
    assert second["log_prob"] < 0
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_infer_answers_texts_of_other_files(run, tmp_path, capfd):
    arguments = ["infer", "--checkpoint", run, "--max_tokens=2", "--mode=S"]
    out = tmp_path / "out.jsonl"
    (tmp_path / "in.txt.gz").write_bytes(gzip.compress(b"the model\n\nrivers\n"))
    command = [*arguments, "--input", tmp_path / "in.txt.gz", "--output", out]
    capfd.readouterr()
    assert cli.main([*map(str, command), "--json"]) == 0
    captured = capfd.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["rows"], report["bad_rows"]) == (3, 1)
    assert "the first is row 2: empty line" in captured.err
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["inputs"] for row in answers] == ["the model", "", "rivers"]
    assert ["prediction" in row for row in answers] == [True, False, True]
    assert answers[1]["error"] == "empty line"


def test_infer_scores_samples_and_searches(run, tmp_path):
    rows = [{"inputs": "the ___ reads", "targets": "<extra_id_0> model"}] * 2
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["infer", "--checkpoint", run, "--input", source, "--output", out]
    arguments = [*map(str, arguments), "--mode=R", "--max_tokens=4"]

    def answers(*flags):
        assert cli.main([*arguments, *flags]) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    scored = answers("--score")
    assert scored[0]["log_prob"] == scored[1]["log_prob"] < 0
    searched = answers("--num_beams=3", "--num_decodes=2")
    assert len(searched[0]["predictions"]) == 2
    assert searched[0] == searched[1]
    drawn = answers("--temperature=1", "--top_p=0.9", "--num_decodes=3", "--seed=1")
    assert drawn[0]["predictions"] != drawn[1]["predictions"]


@pytest.mark.slow
def test_infer_that_was_killed_goes_on_and_ends_with_the_same_bytes(run, tmp_path):
    source = tmp_path / "in.txt"
    words = WORDS.split()
    texts = [" ".join(words[i % 9 : i % 9 + 1 + i % 5]) for i in range(300)]
    source.write_text("\n".join(texts))
    arguments = ["infer", "--checkpoint", run, "--input", source, "--batch_size=2"]
    arguments = [*map(str, arguments), "--mode=R", "--max_tokens=3", "--temperature=1"]
    whole, out = (str(tmp_path / name) for name in ("whole.jsonl", "out.jsonl"))
    assert cli.main([*arguments, "--output", whole]) == 0
    code = "import sys; from ul2.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments, "--output", out]
    partial = tmp_path / "out.jsonl.partial"
    killed = 0
    for lines in (1, 40, 120):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if partial.exists() and partial.read_bytes().count(b"\n") >= lines:
                process.kill()
                killed += process.wait() == -signal.SIGKILL
            time.sleep(0.01)
        assert not (tmp_path / "out.jsonl").exists()
    assert killed == 3
    assert cli.main([*arguments, "--output", out]) == 0
    assert Path(out).read_bytes() == Path(whole).read_bytes()


def test_infer_warns_where_the_mode_does_not_fit(run, capfd):
    arguments = ["infer", "--checkpoint", str(run), "--text=the", "--max_tokens=1"]
    for mode, warnings in (([], 1), (["--mode=X"], 0)):
        capfd.readouterr()
        assert cli.main([*arguments, *mode]) == 0
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == warnings
        assert all("--mode" in line for line in lines)


def test_infer_knows_what_a_run_was_trained_on(run):
    model = ul2.load(run)
    assert model.trained_modes == ("R", "S", "X")
    assert model.inputs_length == 32


def test_infer_talks_to_a_person(run, capfd, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("/mode R\nthe ___ reads\n/quit\n"))
    capfd.readouterr()
    arguments = ["infer", "--checkpoint", str(run), "--interactive", "--max_tokens=3"]
    assert cli.main([*arguments, "--json"]) == 0
    *_, answer, report = capfd.readouterr().out.splitlines()
    assert answer.startswith("the ")
    assert json.loads(report) == {"rows": 1}


def test_infer_answers_the_examples_of_a_task(run, tmp_path, monkeypatch):
    made = [TextExample("is it red?", "True", ("False", "True"))] * 2
    monkeypatch.setattr(examples, "read_examples", lambda *names, **options: iter(made))
    out = tmp_path / "out.jsonl"
    arguments = [
        "infer",
        "--checkpoint",
        run,
        "--task=super_glue_boolq",
        "--output",
        out,
    ]
    assert cli.main([*map(str, arguments), "--mode=S", "--max_tokens=2"]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["targets"] for row in answers] == ["True", "True"]


def test_infer_refuses_another_tokenizer(run, store, tmp_path, refuse):
    copy = shutil.copytree(run, tmp_path / "copy")
    make_store(tmp_path, num_sentinels=41)
    shutil.copy(tmp_path / "t.model", copy / "tokenizer.model")
    error = refuse("infer", "--checkpoint", copy, "--text=a")
    assert "but the vocabulary came from" in error


def test_bad_numbers_are_a_report_with_the_place_the_batch_and_the_knobs(
    store, tmp_path, capfd
):
    model_dir = tmp_path / "r"
    recipe = flags(store, MODEL_DIR=model_dir, LEARNING_RATE=1e30)
    capfd.readouterr()
    assert cli.main(["train", *recipe]) == 1
    report = capfd.readouterr().err.strip().splitlines()
    what, place, batch, saved, knobs = report[-5:]
    assert what.startswith("error: step 2: not finite: the loss of ")
    assert place.startswith("  first bad: encoder ")
    assert batch == f"  batch 1: ul2 inspect --gin_file={model_dir}/config.gin --step 1"
    assert "there is none yet" in saved
    assert "LEARNING_RATE" in knobs and "ON_BAD_NUMBERS" in knobs


def test_memory_that_does_not_suffice_is_a_report_with_knobs(store, monkeypatch, capfd):
    def train(recipe):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2147483648 b")

    monkeypatch.setattr(launch, "train", train)
    assert cli.main(["train", *flags(store, MODEL_DIR="unused")]) == 1
    report = capfd.readouterr().err
    assert "error: out of device memory: 2.00 GiB asked for at once." in report
    assert "MICROBATCHES" in report and "Traceback" not in report


def test_infer_refuses_what_it_cannot_read(run, tmp_path, refuse):
    arguments = ["infer", "--checkpoint", run]
    assert "needs --output" in refuse(*arguments, "--input=a.jsonl")
    missing = ["--input", tmp_path / "no.jsonl", "--output", tmp_path / "o"]
    assert "cannot read --input" in refuse(*arguments, *missing)
    (tmp_path / "empty.jsonl").write_text("")
    empty = ["--input", tmp_path / "empty.jsonl", "--output", tmp_path / "o"]
    assert "empty.jsonl is empty" in refuse(*arguments, *empty)
    assert "needs --output" in refuse(*arguments, "--task=super_glue_boolq")
    task = ["--task=super_glue_bolq", "--output", tmp_path / "o"]
    assert "super_glue_boolq" in refuse(*arguments, *task)
    both = ["--text=a", "--num_beams=2", "--temperature=0.5"]
    assert "a beam search draws nothing" in refuse(*arguments, *both)
    assert "--on_long=cut" in refuse(*arguments, "--text=a", "--on_long=cut")
    assert '"inputs" is empty' in refuse(*arguments, "--text= ", "--mode=R")
    assert "no checkpoint of step 9" in refuse(*arguments, "--text=a", "--step=9")
    assert "no best.json" in refuse(*arguments, "--text=a", "--step=best")
    assert "--step=first" in refuse(*arguments, "--text=a", "--step=first")
    assert "mode 'Q'" in refuse(*arguments, "--text=a", "--mode=Q")
    error = refuse("infer", "--checkpoint", tmp_path / "none", "--text=a")
    assert str(tmp_path / "none") in error


def test_row_chooses_its_mode_or_none(run, tmp_path):
    rows = [{"inputs": "a", "mode": mode} for mode in ("X", "none", None)]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["infer", "--checkpoint", run, "--input", source, "--output", out]
    assert cli.main([*map(str, arguments), "--max_tokens=1", "--mode=R"]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["mode"] for row in answers] == ["X", None, None]


def test_row_that_cannot_be_answered_stops_nothing(run, tmp_path):
    lines = [b'{"inputs": "a"}', b'{"inputs": "caf\xe9"}', b'{"text": "b"}', b"{", b""]
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join([*lines, b'{"inputs": "c"}']))
    out = tmp_path / "out.jsonl"
    arguments = ["infer", "--checkpoint", run, "--input", tmp_path / "bad.jsonl"]
    arguments += ["--output", out, "--mode=R", "--max_tokens=1"]
    assert cli.main([*map(str, arguments)]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert ["error" in row for row in answers] == [False, True, True, True, True, False]


def test_output_that_cannot_be_written_is_refused_before_the_work(
    run, tmp_path, refuse
):
    (tmp_path / "file").write_text('{"inputs": "a"}')
    inside = tmp_path / "file" / "out"
    arguments = ["infer", "--checkpoint", run, "--input", tmp_path / "file"]
    assert f"--output={inside}: " in refuse(*arguments, "--output", inside)
    corpus = write_corpus(tmp_path / "a.jsonl", 9)
    assert f"--out={inside}: " in refuse(*tokenize(corpus, inside))


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["inspect"], "--examples=0"),
        (["infer", "--checkpoint=none", "--text=a"], "--max_tokens=0"),
        (
            ["tokenize", "--text=embedded", "--vocab=v", "--out=none"],
            "--num_sentinels=-1",
        ),
    ],
)
def test_number_below_the_least_is_refused(refuse, command, flag):
    assert refuse(*command, flag).startswith(f"error: {flag} must be at least ")


def test_module_that_is_not_there_is_refused(tmp_path, refuse):
    command = ["tokenize", "--task=t", "--vocab=v", "--out", tmp_path / "out"]
    error = refuse(*command, "--import_module=no_such.module")
    assert "--import_module=no_such.module: No module named 'no_such'" in error


def test_macro_of_a_command_that_reads_none_is_refused(refuse):
    error = refuse("infer", "--checkpoint=none", "--text=a", "--gin.MESH=auto")
    assert "--gin.MESH" in error
