"""UL2 20B on 8 to 2048 chips: predicted step time, and where each mesh stops paying.

    python benchmarks/scaling.py --out benchmarks/scaling_2026-11.svg

Nothing is compiled: memory and communication are those of `ul2.planning.predict`,
time is `ul2.planning.estimate`'s. `--check TOPOLOGY` compiles the best mesh of that
slice, and prints the prediction beside what the compiler says.
"""

import argparse
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from ul2.planning import estimate
from ul2.planning.estimate import StepTime
from ul2.planning.from_gin import read_recipe
from ul2.planning.plan import Setting, lay_out, plan, with_config
from ul2.planning.predict import Sizes, predicted_sent, predicted_use
from ul2.planning.shapes import shape_of
from ul2.planning.topology import Topology, open_topologies
from ul2.recipe import Recipe
from ul2.sharding.mesh import make_mesh

FILES = (
    "configs/models/ul2_20b.gin",
    "configs/objectives/ul2.gin",
    "configs/runs/pretrain.gin",
)
SLICES = (
    "v5p:2x2x2",
    "v5p:2x2x4",
    "v5p:2x4x4",
    "v5p:4x4x4",
    "v5p:4x4x8",
    "v5p:4x8x8",
    "v5p:8x8x8",
    "v5p:8x8x16",
    "v5p:8x16x16",
)
TENSOR = (1, 2, 4, 8, 16)
REMATS = ("none", "dots", "full")
# Twice the chips shall be at least this much faster, or they do not pay.
PAYS = 1.5
COLORS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677")


class Point(NamedTuple):
    """The best of one tensor size on one slice."""

    devices: int
    tensor: int
    remat: str
    needed_bytes: int
    time: StepTime
    mfu: float


def recipe_of(batch_size: int) -> Recipe:
    """Returns the recipe at another batch size."""
    bindings = [("BATCH_SIZE", str(batch_size))]
    return read_recipe(FILES, bindings)[0]


def on_one_device(recipe: Recipe, topology: Topology) -> Setting:
    """Lays the recipe out where nothing has to divide: for its sizes."""
    one = dataclasses.replace(topology, devices=topology.devices[:1])
    return lay_out(dataclasses.replace(recipe, mesh="auto"), one)


def mesh_text(topology: Topology, tensor: int) -> str:
    """Returns MESH of a tensor size, all other chips on fsdp."""
    return f"fsdp={len(topology.devices) // tensor},tensor={tensor}"


def points(whole: Setting, topology: Topology) -> Iterator[Point]:
    """Yields the fastest policy that fits, of every tensor size that divides.

    Args:
        whole: the recipe on one device.
        topology: what it shall run on.
    """
    chip = topology.chip
    assert chip is not None
    sizes = Sizes(whole.params, whole.held.parameters, whole.held.optimizer)
    for tensor in (size for size in TENSOR if len(topology.devices) % size == 0):
        mesh = make_mesh(mesh_text(topology, tensor), topology.devices)
        try:
            shape = shape_of(whole.recipe, mesh)
        except ValueError:  # the batch does not divide
            continue
        setting = dataclasses.replace(whole, mesh=mesh, shape=shape)
        found = []
        for remat in REMATS:
            config = dataclasses.replace(setting.config, remat=remat)
            work = dataclasses.replace(setting, config=config).work
            use = predicted_use(work, setting.mesh, sizes)
            sent = predicted_sent(work, setting.mesh)
            time = estimate.step_time(topology, setting.mesh, work, use, sent)
            assert time is not None
            peak = chip.peak_flops * len(topology.devices)
            mfu = work.flops.model / time.total / peak
            devices = len(topology.devices)
            found.append(Point(devices, tensor, remat, use.total, time, mfu))
        fitting = [one for one in found if one.needed_bytes <= chip.memory_bytes]
        yield min(fitting or found[-1:], key=lambda one: one.time.total)


def print_table(title: str, found: Sequence[Point], limit: int) -> None:
    """Prints one line per slice and tensor size; the fastest of a slice is bold."""
    names = ["chips", "tensor", "remat", "memory", "step", "MFU"]
    names += ["compute", "hidden", "exposed"]
    print(f"\n{title}\n\n| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for devices, group in itertools.groupby(found, key=lambda one: one.devices):
        alike = list(group)
        best = min(alike, key=lambda one: one.time.total)
        for one in alike:
            mark = "**" if one is best else ""
            fits = "" if one.needed_bytes <= limit else " (too much)"
            print(
                f"| {devices} | {one.tensor} | {one.remat} "
                f"| {one.needed_bytes / 2**30:.1f} GiB{fits} "
                f"| {mark}{one.time.total:.3g} s{mark} | {one.mfu:.1%} "
                f"| {one.time.compute:.3g} | {one.time.hidden:.3g} "
                f"| {one.time.exposed:.3g} |"
            )


def print_ends(found: Sequence[Point]) -> None:
    """Says up to how many chips each tensor size pays."""
    for tensor in TENSOR:
        own = [one for one in found if one.tensor == tensor]
        last = own[0] if own else None
        for before, after in itertools.pairwise(own):
            if before.time.total / after.time.total < PAYS:
                break
            last = after
        if last is not None:
            why = "the batch divides no further" if last is own[-1] else "then does not"
            print(f"tensor={tensor} pays up to {last.devices} chips ({why}).")


def draw(
    series: dict[str, Sequence[Point]], path: pathlib.Path, size: tuple[int, int]
) -> None:
    """Draws step time over chips, both logarithmic, one panel per series."""
    width, height = size
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(series)}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for panel, (title, found) in enumerate(series.items()):
        left, right = panel * width + 60, (panel + 1) * width - 20
        top, bottom = 40, height - 45
        xs = [math.log2(one.devices) for one in found]
        ys = [math.log10(one.time.total) for one in found]

        def x(one: Point, left: int = left, right: int = right, xs: Any = xs) -> float:
            share = (math.log2(one.devices) - min(xs)) / (max(xs) - min(xs))
            return left + share * (right - left)

        def y(seconds: float, ys: Any = ys, top: int = top, end: int = bottom) -> float:
            share = (math.log10(seconds) - min(ys)) / (max(ys) - min(ys))
            return end - share * (end - top)

        lines.append(f'<text x="{left}" y="20" font-size="14">{title}</text>')
        for one in {one.devices: one for one in found}.values():
            lines.append(
                f'<text x="{x(one):.0f}" y="{bottom + 18}" text-anchor="middle">'
                f"{one.devices}</text>"
            )
        for power in range(math.floor(min(ys)), math.ceil(max(ys)) + 1):
            for seconds in (10.0**power, 3 * 10.0**power):
                if min(ys) <= math.log10(seconds) <= max(ys):
                    place = y(seconds)
                    lines.append(
                        f'<line x1="{left}" x2="{right}" y1="{place:.0f}" '
                        f'y2="{place:.0f}" stroke="#ddd"/><text x="{left - 6}" '
                        f'y="{place + 4:.0f}" text-anchor="end">{seconds:g} s</text>'
                    )
        for index, tensor in enumerate(TENSOR):
            own = [one for one in found if one.tensor == tensor]
            path_text = " ".join(f"{x(one):.1f},{y(one.time.total):.1f}" for one in own)
            color = COLORS[index]
            lines.append(
                f'<polyline points="{path_text}" fill="none" stroke="{color}" '
                'stroke-width="2"/>'
                f'<text x="{right - 70}" y="{top + 16 * index}" fill="{color}">'
                f"tensor={tensor}</text>"
            )
        lines.append(
            f'<text x="{(left + right) // 2}" y="{height - 8}" text-anchor="middle">'
            "chips</text>"
        )
    path.write_text("\n".join([*lines, "</svg>\n"]))


def check(name: str, batch_size: int) -> None:
    """Compiles the best mesh of a slice, and compares."""
    recipe, (topology,) = recipe_of(batch_size), open_topologies([name])
    whole = on_one_device(recipe, topology)
    best = min(points(whole, topology), key=lambda one: one.time.total)
    recipe = with_config(
        dataclasses.replace(recipe, mesh=mesh_text(topology, best.tensor)),
        lambda config: dataclasses.replace(config, remat=best.remat),
    )
    setting = lay_out(recipe, topology)
    report = plan(setting)
    print(f"\n{name}, tensor={best.tensor}, REMAT={best.remat}:")
    print("\n| | predicted | compiled |\n|---|---|---|")
    total = report["bytes_per_device"]["total"]
    print(f"| memory, GiB | {best.needed_bytes / 2**30:.1f} | {total / 2**30:.1f} |")
    print(f"| step, s | {best.time.total:.3g} | {report['step_seconds']:.3g} |")
    sent = sum(one.sent_bytes for one in predicted_sent(setting.work, setting.mesh))
    compiled = report["communicated_bytes"]
    print(f"| sent, GB | {sent / 1e9:.1f} | {compiled / 1e9:.1f} |")


def main() -> None:
    """Prints tables, draws them, and compiles one of them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--per_chip", type=int, default=16)
    parser.add_argument("--check", metavar="TOPOLOGY")
    options = parser.parse_args()
    topologies = open_topologies(SLICES)
    fixed = on_one_device(recipe_of(options.batch_size), topologies[0])
    series: dict[str, list[Point]] = {
        f"batch {options.batch_size}": [],
        f"{options.per_chip} examples per chip": [],
    }
    same, growing = series.values()
    for topology in topologies:
        same += points(fixed, topology)
        batch_size = options.per_chip * len(topology.devices)
        growing += points(on_one_device(recipe_of(batch_size), topology), topology)
    for title, found in series.items():
        print_table(title, found, topologies[0].memory_bytes)
    print()
    print_ends(same)
    draw(series, options.out, (560, 400))
    print(f"\n{options.out}; assumed:")
    for line in estimate.assumptions(topologies[0]):
        print(f"- {line}")
    if options.check:
        check(options.check, options.batch_size)


if __name__ == "__main__":
    main()
