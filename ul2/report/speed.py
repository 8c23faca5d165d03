"""What the optimizer did, how fast the run went, and what it held."""

from collections.abc import Callable
from typing import Final, NamedTuple

from ul2.html.elements import Html
from ul2.html.scales import number, percent
from ul2.report.drawing import Drawing, charts
from ul2.report.run_record import Column, RunRecord

_GIB: Final = 2.0**-30


class _Quantity(NamedTuple):
    """A number of every measurement."""

    name: str
    title: str
    unit: str
    form: Callable[[float], str] = number
    from_zero: bool = False
    factor: float = 1.0


_OPTIMIZER: Final = (
    _Quantity("learning_rate", "Learning rate", ""),
    _Quantity("grad_norm", "Norm of the gradients", ""),
    _Quantity("param_norm", "Norm of the parameters", ""),
    _Quantity("z_loss", "z-loss", "nats per token"),
)
_SPEED: Final = (
    _Quantity("tokens_per_second", "Throughput", "tokens per second", number, True),
    _Quantity("steps_per_second", "Updates", "per second", number, True),
    _Quantity("mfu", "MFU", "model FLOPs / peak FLOPs", percent, True),
    _Quantity("padding_fraction", "Padding", "share of columns", percent, True),
    _Quantity("data_wait_fraction", "Wait for data", "share of time", percent, True),
    _Quantity(
        "device_memory_bytes",
        "Device memory",
        "GiB, peak of the fullest",
        number,
        True,
        _GIB,
    ),
)


def optimizer(drawing: Drawing) -> Html | None:
    """Returns learning rate and norms."""
    return charts(_chart(drawing, quantity) for quantity in _OPTIMIZER)


def speed(drawing: Drawing) -> Html | None:
    """Returns throughput, padding, waiting and memory."""
    found = [_chart(drawing, quantity) for quantity in _SPEED]
    found.append(
        drawing.per_run(
            "Host memory",
            "GiB, peak of the first process",
            lambda run: run.host_memory.scaled(_GIB),
            from_zero=True,
        )
    )
    return charts(found)


def _chart(drawing: Drawing, quantity: _Quantity) -> Html | None:
    def find(run: RunRecord) -> Column:
        column = run.metrics.of(quantity.name)
        return column if quantity.factor == 1 else column.scaled(quantity.factor)

    return drawing.per_run(
        quantity.title,
        quantity.unit,
        find,
        form=quantity.form,
        from_zero=quantity.from_zero,
    )
