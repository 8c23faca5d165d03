"""Plans, for a person to read."""

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

_CAUSES: Final = (
    ("parameters", "parameters"),
    ("optimizer", "optimizer state"),
    ("batch", "batch"),
    ("padding", "padding to tiles"),
    ("temporaries", "temporaries"),
    ("activations", "  kept for the backward pass"),
    ("gradients", "  gradients of layers"),
    ("program", "program"),
    ("total", "total"),
)
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_KIB: Final = 1024


def in_bytes(size: float) -> str:
    """Returns a size as a person reads it: 19327352832 -> 18.0 GiB."""
    unit = 0
    while abs(size) >= _KIB and unit < len(_UNITS) - 1:
        size, unit = size / _KIB, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} B"


def print_plan(report: dict[str, Any], console: Console) -> None:
    """Shows one plan: memory, communication, time, and what it rests on."""
    console.print(_headline(report), soft_wrap=True)
    console.print(_memory_table(report))
    if report.get("communication"):
        console.print(_communication_table(report))
    for line in _time_lines(report):
        console.print(line, soft_wrap=True)
    if "search" in report:
        console.print(_search_table(report["search"]))
    for line in _warnings(report):
        console.print(Text(f"warning: {line}", style="yellow"), soft_wrap=True)
    if "refused" in report:
        console.print(Text(report["refused"], style="red"), soft_wrap=True)
    if report["knobs"]:
        console.print(Text("does not fit; what helps:", style="red"))
    for line in report["knobs"]:
        console.print(Text(f"  {line}"), soft_wrap=True)
    for line in report["assumptions"]:
        console.print(Text(f"assumed: {line}", style="dim"), soft_wrap=True)


def _headline(report: dict[str, Any]) -> Text:
    layers = "+".join(str(number) for number in report["layers"] if number)
    return Text(
        f"{report['params']:,} parameters ({report['architecture']}, {layers} layers) "
        f"on {report['topology']} ({report['devices']} devices, {report['compiler']}), "
        f"MESH={report['MESH']}, REMAT={report['REMAT']}, MICROBATCHES="
        f"{report['MICROBATCHES']}; {report['BATCH_SIZE']} examples in "
        f"{report['rows']} rows of {'+'.join(map(str, report['row_lengths']))} columns",
        style="bold",
    )


def _memory_table(report: dict[str, Any]) -> Table:
    used = report["bytes_per_device"]
    limit = report["memory_bytes_per_device"]
    verdict = "fits" if report["fits"] else "does not fit"
    table = Table(title=f"memory of a device: {verdict} into {in_bytes(limit)}")
    table.add_column("cause")
    table.add_column("size", justify="right")
    table.add_column("share", justify="right")
    for name, label in _CAUSES:
        if used[name]:
            table.add_row(label, in_bytes(used[name]), f"{used[name] / limit:.1%}")
    return table


def _communication_table(report: dict[str, Any]) -> Table:
    table = Table(title="sent by a device in a step")
    for name in ("collective", "mesh axis"):
        table.add_column(name)
    for name in ("devices", "times", "bytes"):
        table.add_column(name, justify="right")
    for one in report["communication"]:
        table.add_row(
            one["collective"],
            one["axis"],
            str(one["group_size"]),
            str(one["count"]),
            in_bytes(one["bytes"]),
        )
    return table


def _time_lines(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{report['flops_per_step']:.4g} FLOPs a step, and "
        f"{report['flops']['recompute']:.3g} more that remat computes again; "
        f"checkpoint: {in_bytes(report['checkpoint_bytes'])}"
    ]
    if report.get("compile_seconds") is not None:
        lines.append(
            f"compiled in {report['compile_seconds']:.1f} s, with at most "
            f"{in_bytes(report['host_peak_bytes'])} of this machine's memory"
        )
    if report.get("step_seconds") is None:
        return lines
    time = report["time"]
    lines.append(
        f"a step takes about {report['step_seconds']:.3g} s (compute "
        f"{time['compute']:.3g}, memory {time['memory']:.3g}, communication "
        f"{time['hidden']:.3g} hidden and {time['exposed']:.3g} not): "
        f"MFU {report['mfu']:.1%}, {report['tokens_per_second']:,.0f} tokens/s, "
        f"{report['examples_per_second']:,.1f} examples/s; bound by "
        f"{time['bound_by']}"
    )
    if report["hours"] is not None:
        lines.append(f"the run takes about {report['hours']:,.1f} hours")
    return lines


def _warnings(report: dict[str, Any]) -> list[str]:
    lines = []
    if report.get("whole_parameters"):
        names = ", ".join(report["whole_parameters"])
        lines.append(f"every device makes these parameters whole: {names}")
    if report.get("whole_logits"):
        lines.append("every device makes all its logits at once; lower LOSS_CHUNK")
    if report.get("unread_loops"):
        lines.append(
            f"{report['unread_loops']} loops do not say how often they turn; what is "
            "sent in them is counted once"
        )
    return lines


def _search_table(search: dict[str, Any]) -> Table:
    table = Table(
        title=f"{len(search['compiled'])} compiled of {search['considered']} that "
        "divide, the best first"
    )
    for name in ("MESH", "REMAT"):
        table.add_column(name)
    for name in ("MICROBATCHES", "memory", "(predicted)", "step", "(predicted)", "MFU"):
        table.add_column(name, justify="right")
    table.add_column("fits")
    for one in search["compiled"]:
        predicted = one["predicted"]
        table.add_row(
            one["MESH"],
            one["REMAT"],
            str(one["MICROBATCHES"]),
            in_bytes(one["total_bytes"]),
            in_bytes(predicted["total_bytes"]),
            _seconds(one["step_seconds"]),
            _seconds(predicted["step_seconds"] if one["mfu"] else None),
            "-" if one["mfu"] is None else f"{one['mfu']:.1%}",
            "yes" if one["fits"] else "no",
        )
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"


def print_plans(reports: Sequence[dict[str, Any]], console: Console) -> None:
    """Shows several plans in one table."""
    table = Table(title="memory of a device, and time of a step")
    for name in ("config", "topology", "MESH", "REMAT"):
        table.add_column(name)
    for name in ("MICROBATCHES", "params", "memory", "of", "step", "MFU", "sent"):
        table.add_column(name, justify="right")
    table.add_column("fits")
    for one in reports:
        table.add_row(
            one["config"] or "-",
            one["topology"],
            one["MESH"],
            one["REMAT"],
            str(one["MICROBATCHES"]),
            f"{one['params']:,}",
            in_bytes(one["bytes_per_device"]["total"]),
            in_bytes(one["memory_bytes_per_device"]),
            _seconds(one.get("step_seconds")),
            "-" if one.get("mfu") is None else f"{one['mfu']:.1%}",
            in_bytes(one.get("communicated_bytes", 0.0)),
            "yes" if one["fits"] else "no",
        )
    console.print(table)
    for line in dict.fromkeys(line for one in reports for line in one["assumptions"]):
        console.print(Text(f"assumed: {line}", style="dim"), soft_wrap=True)
