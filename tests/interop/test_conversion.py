"""`ul2 convert`: the same model in every format, or nothing at all."""

import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest
from checkpoint_toys import make_checkpoint, save, with_param

from ul2 import cli, interop
from ul2.interop import certificate, conversion, own, streamed, t5x_writing
from ul2.interop.conversion import convert
from ul2.interop.opening import open_checkpoint
from ul2.interop.staging import Staging
from ul2.interop.t5x import CHECKPOINT


def values(checkpoint):
    return {path: tensor.read() for path, tensor in checkpoint.params.items()}


def assert_same_params(found, expected):
    found, expected = values(found), values(expected)
    assert found.keys() == expected.keys()
    for path, wanted in expected.items():
        assert found[path].dtype == wanted.dtype, path
        np.testing.assert_array_equal(found[path], wanted, err_msg=path)


def written(tmp_path, name="source", kind="ul2", **changes):
    """Writes a toy in our format and returns where it is."""
    return save(own.write, make_checkpoint(kind, **changes), tmp_path / name)


ROUTES = (
    ("t5x", "ul2"),
    ("huggingface", "ul2"),
    ("huggingface", "t5x", "huggingface", "ul2"),
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("route", ROUTES)
def test_parameters_and_contract_survive_any_route(route, dtype, tmp_path):
    source = open_checkpoint(written(tmp_path, dtype=dtype))
    found = source
    for number, to in enumerate(route):
        out = tmp_path / f"{number}_{to}"
        report = convert(found, to, out)
        assert report["max_logit_difference"] < 1e-5
        found = open_checkpoint(out)
        assert found.format == to
    assert_same_params(found, source)
    # transformers computes in the dtype that it stores.
    config = dataclasses.replace(found.config, dtype=source.config.dtype)
    assert config == source.config
    assert found.vocab == source.vocab


def test_decoder_only_goes_to_t5x_and_back(tmp_path):
    changes = {"architecture": "decoder_only", "num_encoder_layers": 0}
    source = open_checkpoint(written(tmp_path, **changes))
    convert(source, "t5x", tmp_path / "t5x")
    found = open_checkpoint(tmp_path / "t5x")
    assert found.architecture == "decoder_only"
    assert_same_params(found, source)


def test_card_says_what_was_converted_and_how_it_compares(tmp_path):
    source = open_checkpoint(written(tmp_path))
    report = convert(source, "huggingface", tmp_path / "out")
    card = json.loads((tmp_path / "out" / certificate.CARD).read_text())
    assert card["max_logit_difference"] == report["max_logit_difference"] == 0
    assert card["source"]["format"] == "ul2"
    assert card["source"]["config"]["embed_dim"] == 32
    assert card["vocab"] == source.vocab.to_json()
    assert card["parameters"] == sum(t.size for t in source.params.values())
    arrays = card["arrays"]
    assert arrays.keys() == source.params.keys()
    assert arrays["embedder.embedding"]["shape"] == [128, 32]
    assert len({entry["sha256"] for entry in arrays.values()}) == len(arrays)


def test_rounding_to_bfloat16_shows_on_the_card(tmp_path):
    source = open_checkpoint(written(tmp_path))
    report = convert(source, "huggingface", tmp_path / "out", dtype="bfloat16")
    assert 1e-4 < report["max_logit_difference"] < 1
    found = open_checkpoint(tmp_path / "out")
    assert {t.dtype.name for t in found.params.values()} == {"bfloat16"}
    shared = found.params["embedder.embedding"].read()
    original = source.params["embedder.embedding"].read()
    np.testing.assert_array_equal(shared, original.astype(shared.dtype))


@pytest.mark.parametrize("to", ["t5x", "huggingface", "ul2"])
def test_export_that_changed_since_is_not_converted_again(to, tmp_path):
    convert(open_checkpoint(written(tmp_path)), to, tmp_path / "out")
    found = open_checkpoint(tmp_path / "out")
    table = np.array(found.params["embedder.embedding"].read())
    table[3, 5] += 1
    damaged = with_param(found, "embedder.embedding", table)
    with pytest.raises(ValueError, match=r"has changed since .*copy it again"):
        convert(damaged, "ul2", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_numbers_that_are_not_finite_leave_nothing_behind(tmp_path):
    source = make_checkpoint("ul2")
    broken = np.array(source.params["decoder.layers.mlp.wo"].read())
    broken[1, 2, 3] = np.nan
    source = with_param(source, "decoder.layers.mlp.wo", broken)
    for to in conversion.WRITERS:
        with pytest.raises(ValueError, match="NaN or infinity"):
            convert(source, to, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_source_is_named_and_the_destination_untouched(damage, tmp_path):
    source = written(tmp_path)
    array = source / "checkpoints" / "0" / "params" / "encoder.final_norm.scale"
    chunk = array / "0"
    content = chunk.read_bytes()
    chunk.unlink()
    if damage == "truncated":
        chunk.write_bytes(content[:-3])
    arguments = ["convert", str(source), "--to", "t5x", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_error_names_the_damaged_array(tmp_path, capsys):
    source = written(tmp_path)
    params = source / "checkpoints" / "0" / "params"
    shutil.rmtree(params / "encoder.final_norm.scale")
    cli.main(["convert", str(source), "--to", "ul2", "--out", str(tmp_path / "out")])
    assert "encoder.final_norm.scale" in capsys.readouterr().err.splitlines()[-1]


def test_destination_that_exists_is_kept(tmp_path):
    source = open_checkpoint(written(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(ValueError, match="exists; choose another --out"):
        convert(source, "ul2", tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "mine"


class Killed(BaseException):
    """What ends a process without letting it tidy up."""


@pytest.mark.parametrize("to", ["ul2", "t5x"])
def test_killed_conversion_goes_on_where_it_stopped(to, tmp_path, monkeypatch):
    source = open_checkpoint(written(tmp_path))
    once = Staging.once
    calls = []

    def die_after_five(self, name, write):
        if len(calls) == 5:
            raise Killed
        calls.append(name)
        once(self, name, write)

    monkeypatch.setattr(Staging, "once", die_after_five)
    with pytest.raises(Killed):
        convert(source, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    written_again = []

    def count(self, name, write):
        once(self, name, lambda: (written_again.append(name), write()))

    monkeypatch.setattr(Staging, "once", count)
    report = convert(source, to, tmp_path / "out")
    assert report["resumed"]
    assert not set(calls) & set(written_again)
    assert_same_params(open_checkpoint(tmp_path / "out"), source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_another_conversion_does_not_go_on_with_what_is_there(tmp_path, monkeypatch):
    source = open_checkpoint(written(tmp_path))

    def die(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "commit", die)
        with pytest.raises(Killed):
            convert(source, "ul2", tmp_path / "out")
    report = convert(source, "ul2", tmp_path / "out", dtype="bfloat16")
    assert not report["resumed"]
    dtypes = {t.dtype.name for t in open_checkpoint(tmp_path / "out").params.values()}
    assert dtypes == {"bfloat16"}


def test_streamed_logits_are_those_of_the_whole_model(tmp_path):
    for kind in ("ul2_no_norm_scale", "umt5_untied", "t5_1_0"):
        source = open_checkpoint(written(tmp_path, kind, kind))
        model, vocab = interop.load(tmp_path / kind)
        assert vocab == source.vocab
        batch = certificate.probe(source)
        valid = batch.decoder.segment_ids > 0
        np.testing.assert_allclose(
            streamed.logits(source, batch)[valid],
            np.asarray(model.logits(batch))[valid],
            atol=1e-5,
        )


def test_export_that_is_another_model_is_found_out(tmp_path):
    source = open_checkpoint(written(tmp_path))
    kernels = np.array(source.params["encoder.layers.attention.key"].read())
    kernels[1] = kernels[1][::-1]
    other = with_param(source, "encoder.layers.attention.key", kernels)
    with pytest.raises(ValueError, match=r"encoder\.layers\.attention\.key is another"):
        certificate.compare(source, other)
    assert certificate.max_logit_difference(source, other) > 1e-3


def test_command_reports_one_object(tmp_path, capsys):
    source = written(tmp_path)
    out = tmp_path / "out"
    flags = ["--to", "stablehlo", "--out", str(out), "--json"]
    assert cli.main(["convert", str(source), *flags]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["to"] == "stablehlo"
    assert report["path"] == str(out)
    assert report["max_logit_difference"] < 1e-5
    assert (out / "load.py").is_file()


def test_large_stablehlo_export_is_compared_by_its_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_MAX_RUN_BYTES", 0)
    source = open_checkpoint(written(tmp_path))
    report = convert(source, "stablehlo", tmp_path / "out")
    assert report["compared_with"] == "the exported parameters, read again"
    assert report["max_logit_difference"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere", "--to", "ul2"], "no checkpoint at nowhere"),
        (["{tmp}", "--to", "ul2"], "holds no checkpoint of ul2"),
        (["{source}", "--to", "ul2", "--preset", "ul2_20b"], "is no ul2_20b"),
        (["{source}", "--to", "ul2", "--preset", "ul3"], "no preset 'ul3'"),
        (["{source}", "--to", "ul2", "--activation", "relu"], "says silu itself"),
        (["{source}", "--to", "ul2", "--step", "3"], "no checkpoint of step 3"),
    ],
)
def test_wrong_input_is_one_line(arguments, reason, tmp_path, capsys):
    places = {"tmp": tmp_path / "empty", "source": written(tmp_path)}
    places["tmp"].mkdir()
    arguments = [one.format(**places) for one in arguments]
    out = tmp_path / "out"
    assert cli.main(["convert", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert reason in error[-1]
    assert not out.exists()


def test_t5x_export_says_its_activation(tmp_path):
    convert(make_checkpoint("t5_1_1"), "t5x", tmp_path / "out")
    assert (tmp_path / "out" / CHECKPOINT).is_file()
    found = open_checkpoint(tmp_path / "out")
    assert found.config.activation == "gelu"
    assert t5x_writing.layout_of(found).name == "t5"


def test_disk_that_is_full_leaves_nothing_behind(tmp_path, monkeypatch):
    source = open_checkpoint(written(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Staging, "once", full)
    with pytest.raises(ValueError, match=r"cannot write to .*: No space left"):
        convert(source, "ul2", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
