"""The state of T5X's Adafactor, in its arrangement and in ours.

Each parameter has four arrays there: `v`, or `v_row` and `v_col` where it is factored,
and `m`; those that are not used are a single zero. What a row is depends on the rank:

    rank 2 (and 1)      by size, as in optax: v_row keeps the second largest dim
    rank 3 and 4        by name: v_row keeps `embed`, v_col the others; `layers` stay

    query  [32, 2, 4, 8]  (embed, layers, heads, kv)     v_row [32, 2]   v_col [2, 4, 8]
    ours   [2, 32, 32]    (layers, embed, heads)         v_row [2, 32]   v_col [2, 32]

Source: `t5x/adafactor.py`, `standard_logical_factor_rules` and `HParamMap`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from ul2.interop.checkpoint import Moments
from ul2.interop.t5x_names import Place, moved
from ul2.interop.tensors import Tensor, from_array, layer, merged, split, stacked

SLOTS: Final = ("m", "v", "v_col", "v_row")
_UNUSED: Final = (1,)


def read_moments(
    places: Iterable[Place],
    shapes: Mapping[str, tuple[int, ...]],
    states: Mapping[str, Tensor],
    step: int,
) -> Moments:
    """Returns the state in our arrangement.

    Args:
        places: of all parameters.
        shapes: of our parameters, by path.
        states: every array, named like its parameter with `/v` and so on behind.
        step: updates done.

    Raises:
        ValueError: an array is missing or has a shape that the rules do not give.
    """
    v_row, v_col, v = {}, {}, {}
    for place in places:
        shape = shapes[place.path]
        rows = _slot(place, states, "v_row")
        if all(one.shape == _UNUSED for one in rows.values()):
            v[place.path] = place.to_ours(_slot(place, states, "v"))
            _check(place, v[place.path], shape)
            continue
        pair = (
            _factor_to_ours(place, rows, "embed"),
            _factor_to_ours(place, _slot(place, states, "v_col"), "rest"),
        )
        row, col = pair[::-1] if _is_swapped(place, shape) else pair
        kept = keeps_rows(shape[-2:])
        _check(place, row, (*shape[:-2], shape[-2:][kept]))
        _check(place, col, (*shape[:-2], shape[-2:][1 - kept]))
        v_row[place.path], v_col[place.path] = row, col
    return Moments(step=step, v_row=v_row, v_col=v_col, v=v)


def write_moments(
    places: Iterable[Place],
    shapes: Mapping[str, tuple[int, ...]],
    moments: Moments,
) -> dict[str, Tensor]:
    """Returns every array of the state in T5X's arrangement; the inverse of reading."""
    states: dict[str, Tensor] = {}
    for place in places:
        own: dict[str, dict[str, Tensor]] = {}
        if place.path in moments.v:
            own["v"] = place.to_theirs(moments.v[place.path])
        else:
            pair = moments.v_row[place.path], moments.v_col[place.path]
            if _is_swapped(place, shapes[place.path]):
                pair = pair[::-1]
            own["v_row"] = _factor_to_theirs(place, pair[0], "embed")
            own["v_col"] = _factor_to_theirs(place, pair[1], "rest")
        for name in place.names:
            for slot in SLOTS:
                unused = from_array(f"{name}/{slot}", np.zeros(_UNUSED, np.float32))
                states[f"{name}/{slot}"] = own.get(slot, {}).get(name, unused)
    return states


def keeps_rows(matrix: Sequence[int]) -> int:
    """Returns the dim of a matrix that `v_row` keeps: the second largest."""
    return int(np.argsort(matrix, stable=True)[-2])


def _is_swapped(place: Place, shape: tuple[int, ...]) -> bool:
    """Returns whether T5X's `v_row` is our `v_col`: it goes by name there, not size."""
    layout = place.layout
    by_name = place.is_stack and (
        layout.scan_axis is not None
        or (layout.split_heads and place.heads_axis is not None)
    )
    return by_name and place.embed_axis != keeps_rows(shape[-2:])


def _slot(place: Place, states: Mapping[str, Tensor], slot: str) -> dict[str, Tensor]:
    """Returns the arrays of one kind that belong to a parameter."""
    missing = [name for name in place.names if f"{name}/{slot}" not in states]
    if missing:
        raise ValueError(f"state/param_states/{missing[0]}/{slot} is missing.")
    return {name: states[f"{name}/{slot}"] for name in place.names}


def _check(place: Place, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses an array of another shape than the rules give."""
    if tensor.shape != shape:
        raise ValueError(
            f"the second moments of {place.names[0]} are {list(tensor.shape)} instead "
            f"of {list(shape)}: they were factored by other rules than T5X's."
        )


def _factor_to_ours(place: Place, theirs: Mapping[str, Tensor], kept: str) -> Tensor:
    """Returns row or column means with the layers in front and the heads joined."""
    if not place.is_stack:
        return theirs[place.names[0]]
    join = _has_heads(place, kept)
    if place.layout.scan_axis is None:
        parts = [theirs[name] for name in place.names]
        return stacked([merged(one, 0) if join else one for one in parts])
    whole = moved(theirs[place.names[0]], _layers_axis(place, kept), 0)
    return merged(whole, 1) if join else whole


def _factor_to_theirs(place: Place, ours: Tensor, kept: str) -> dict[str, Tensor]:
    """Returns row or column means as T5X has them."""
    if not place.is_stack:
        return {place.names[0]: ours}
    part = _has_heads(place, kept)
    whole = split(ours, 1, place.head_dim) if part else ours
    if place.layout.scan_axis is None:
        return {name: layer(whole, index) for index, name in enumerate(place.names)}
    return {place.names[0]: moved(whole, 0, _layers_axis(place, kept))}


def _has_heads(place: Place, kept: str) -> bool:
    """Returns whether the means of `embed`, or of the rest, are by head and width."""
    return place.layout.split_heads and place.heads_axis is not None and kept == "rest"


def _layers_axis(place: Place, kept: str) -> int:
    """Returns which dim counts layers, in the means of `embed` or of the rest."""
    assert place.layout.scan_axis is not None
    width = 2 if place.layout.split_heads and place.heads_axis is not None else 1
    dims = ["embed"] + ["rest"] * width
    if place.embed_axis == 1:
        dims.reverse()
    dims.insert(place.layout.scan_axis, "layers")
    return [dim for dim in dims if dim in (kept, "layers")].index("layers")
