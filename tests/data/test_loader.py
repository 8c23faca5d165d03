"""The loader moves exactly, and shows every number of hosts the same batches."""

import itertools
import json

import numpy as np
import pytest
from data_toys import make_stream

from ul2.batch import ALL_ROWS, HostRows
from ul2.data.loader import Loader, Source
from ul2.data.packing import ARCHITECTURES, pack
from ul2.denoising.mixture import named


def make_source(host=ALL_ROWS, architecture="encoder_decoder", per_row=None, **changes):
    stream = make_stream(**{"batch_size": 28, **changes})
    packing = pack(stream, architecture, shards=4, examples_per_row=per_row)
    return Source(stream, packing, host)


def leaves(batch):
    """Returns a batch's arrays, in order."""
    sides = [side for side in (batch.encoder, batch.decoder) if side is not None]
    return [*itertools.chain(*sides), *batch[2:]]


def assert_same(ours, theirs):
    for left, right in zip(leaves(ours), leaves(theirs), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_loader_yields_the_batches_of_its_source_in_order():
    source = make_source()
    loader = Loader(source, prefetch=3)
    for batch in range(5):
        assert_same(next(loader), source[batch])


@pytest.mark.parametrize("prefetch", [0, 1, 16])
def test_prefetch_does_not_change_the_order_or_the_position(prefetch):
    source = make_source()
    loader = Loader(source, prefetch=prefetch)
    for batch in range(4):
        assert loader.position()["batch"] == batch
        assert_same(next(loader), source[batch])


@pytest.mark.parametrize("consumed", [0, 1, 6])
def test_seek_goes_on_where_the_position_was_taken(consumed):
    first = Loader(make_source())
    for _ in range(consumed):
        next(first)
    position = json.loads(json.dumps(first.position()))  # as a checkpoint keeps it
    wanted = [next(first) for _ in range(3)]
    second = Loader(make_source())
    next(second)  # wherever it has been
    second.seek(position)
    assert second.position() == first.position() | {"batch": consumed}
    for batch in wanted:
        assert_same(next(second), batch)


def test_seek_goes_back_and_far_ahead():
    source = make_source()
    loader = Loader(source)
    for batch in (10**9, 2, 0):
        loader.seek(loader.position() | {"batch": batch})
        assert_same(next(loader), source[batch])
        assert loader.position()["batch"] == batch + 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("parts", [[(0,), (1,)], [(0, 1), (2, 3)], [(3,), (0,)]])
def test_a_host_reads_its_rows_of_the_batch(architecture, parts):
    alone = leaves(make_source(architecture=architecture)[3])
    count = 2 if parts[0] == (0,) else 4
    for one in parts:
        host = HostRows(one, count)
        mine = leaves(make_source(host, architecture)[3])
        for ours, whole in zip(mine, alone, strict=True):
            np.testing.assert_array_equal(ours, host.of(whole))


def test_position_is_the_same_on_every_host_and_any_number_of_them():
    positions = []
    hosts = [ALL_ROWS, HostRows((0,), 2), HostRows((1,), 2), HostRows((0, 3), 4)]
    for host in hosts:
        loader = Loader(make_source(host))
        next(loader)
        positions.append(loader.position())
    assert positions.count(positions[0]) == 4


def test_batch_that_does_not_divide_over_the_hosts_is_refused():
    source = make_source()
    parts = source.packing.rows + 1
    with pytest.raises(ValueError, match=f"do not divide into {parts} parts"):
        Source(source.stream, source.packing, HostRows((0,), parts))


@pytest.mark.parametrize(
    ("changes", "named_in_error"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"batch_size": 56}, "batch_size: 28 -> 56"),
        ({"length": 128}, "inputs_length: 64 -> 128"),
        ({"num_tokens": 30_000}, "tokens: 20000 -> 30000"),
        ({"objective": "ul2r"}, "denoisers: .*rates: "),
        # Names and rates are the same, the examples are not.
        ({"objective": named("ul2", s_denoiser="half")}, "denoisers: "),
        ({"objective": named("ul2", placement="t5")}, "denoisers: "),
    ],
)
def test_seek_refuses_a_position_of_another_stream(changes, named_in_error):
    position = Loader(make_source()).position()
    other = Loader(make_source(**changes))
    with pytest.raises(ValueError, match=f"another stream .*{named_in_error}"):
        other.seek(json.loads(json.dumps(position)))
    assert other.position()["batch"] == 0
