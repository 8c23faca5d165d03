"""Rows to requests, and what was decoded to answers.

row      {"inputs": "A ___ reads.", "mode": "R", "id": 7}
answer   {"inputs": "A ___ reads.", "id": 7, "mode": "R",
          "prediction": "<extra_id_0> man", "filled": "A man reads.",
          "log_prob": -1.5, "score": -1.5, "finished": true}
or       {"inputs": "", "error": "empty line"}
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ul2.decoding.scoring import Score
from ul2.decoding.settings import DecodingSettings
from ul2.decoding.text import Prompt
from ul2.decoding.text_model import TextModel, TextOutput
from ul2.inference.rows import Row
from ul2.inference.settings import InferenceSettings, read_mode

# What answers add to a row; a row that brings one of them loses it.
_OURS: Final = (
    "mode",
    "prediction",
    "predictions",
    "filled",
    "log_prob",
    "num_tokens",
    "score",
    "finished",
    "truncated",
    "error",
)
_DIGITS: Final = 6


class BadRowError(ValueError):
    """A row cannot be answered; the message says why in one line."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A row that can be answered.

    Attributes:
        row: what it came from.
        text: its inputs.
        mode: R, S, X or None.
        prompt: what the model reads.
        decoding: how its output is chosen.
        targets: ids of outputs to score; empty where one shall be decoded.
    """

    row: Row
    text: str
    mode: str | None
    prompt: Prompt
    decoding: DecodingSettings
    targets: tuple[list[int], ...] = ()


def make_request(row: Row, model: TextModel, settings: InferenceSettings) -> Request:
    """Returns a row as the model reads it.

    Raises:
        BadRowError: it cannot be answered.
    """
    if row.error is not None:
        raise BadRowError(row.error)
    text = _text(row.fields, "inputs", None)
    if not text.strip():
        raise BadRowError('"inputs" is empty')
    targets = _targets(row.fields) if settings.score else ()
    try:
        mode = settings.mode
        if "mode" in row.fields:
            mode = read_mode(row.fields["mode"])
        prompt = _make_prompt(text, mode, row, model, settings)
        encoded = tuple(model.encode_target(prompt, target) for target in targets)
    except ValueError as error:
        raise BadRowError(str(error).rstrip(".")) from None
    decoding = _decoding(row.fields, settings.decoding)
    if not settings.score:
        _check_room(prompt, decoding.max_tokens)
    return Request(row, text, mode, prompt, decoding, encoded)


def answer_decoded(
    request: Request, outputs: Sequence[TextOutput], model: TextModel
) -> dict[str, Any]:
    """Returns the answer to a request, of whose outputs the first is the best."""
    described = [_describe(request, output, model) for output in outputs]
    answer = {**_kept(request), **described[0]}
    if request.decoding.num_decodes > 1:
        answer["predictions"] = described
    return answer


def answer_scored(request: Request, scores: Sequence[Score]) -> dict[str, Any]:
    """Returns the answer to a request to score; lists where it gave a list."""
    log_probs = [_rounded(score.log_prob) for score in scores]
    counts = [score.num_tokens for score in scores]
    is_list = isinstance(request.row.fields["targets"], list)
    return {
        **_kept(request),
        "log_prob": log_probs if is_list else log_probs[0],
        "num_tokens": counts if is_list else counts[0],
    }


def answer_bad(row: Row, error: str) -> dict[str, Any]:
    """Returns the answer to a row that cannot be answered."""
    fields = {name: row.fields[name] for name in row.fields if name not in _OURS}
    return {"inputs": None, **fields, "error": " ".join(error.split())}


def _kept(request: Request) -> dict[str, Any]:
    """Returns what an answer repeats of its request."""
    fields = request.row.fields
    kept = {name: fields[name] for name in fields if name not in _OURS}
    answer = {**kept, "mode": request.mode}
    if request.prompt.num_cut:
        answer["truncated"] = request.prompt.num_cut
    return answer


def _describe(request: Request, output: TextOutput, model: TextModel) -> dict[str, Any]:
    described: dict[str, Any] = {"prediction": output.text}
    if request.prompt.num_blanks:
        described["filled"] = model.fill(request.text, output)
    return {
        **described,
        "log_prob": _rounded(output.log_prob),
        "score": _rounded(output.score),
        "finished": output.finished,
    }


def _rounded(value: float) -> float | None:
    """Returns a number as JSON has it, without digits that mean nothing."""
    return round(value, _DIGITS) if math.isfinite(value) else None


def _make_prompt(
    text: str,
    mode: str | None,
    row: Row,
    model: TextModel,
    settings: InferenceSettings,
) -> Prompt:
    limit = settings.max_inputs or model.inputs_length
    refuse = settings.on_long == "refuse"
    prompt = model.prompt(
        text,
        mode,
        prefix=_text(row.fields, "prefix", settings.prefix),
        max_inputs=None if refuse else limit,
    )
    if refuse and limit is not None and len(prompt.inputs) > limit:
        raise BadRowError(
            f"{len(prompt.inputs)} tokens of inputs, more than {limit} (--max_inputs)"
        )
    return prompt


def _decoding(
    fields: Mapping[str, Any], decoding: DecodingSettings
) -> DecodingSettings:
    """Returns how a row is decoded: it may ask for less than the settings allow."""
    wanted = fields.get("max_tokens")
    if wanted is None:
        return decoding
    if type(wanted) is not int or not 1 <= wanted <= decoding.max_tokens:
        raise BadRowError(
            f'"max_tokens" is {_shown(wanted)}, not a number from 1 to '
            f"{decoding.max_tokens} (--max_tokens)"
        )
    return dataclasses.replace(decoding, max_tokens=wanted)


def _check_room(prompt: Prompt, max_tokens: int) -> None:
    """Refuses an output that has no room for what must be in it."""
    if len(prompt.forced) >= max_tokens:
        raise BadRowError(
            f"{len(prompt.forced)} tokens that the output must begin with leave no "
            f"room in {max_tokens} (--max_tokens)"
        )
    if prompt.num_blanks > max_tokens:
        raise BadRowError(
            f"{prompt.num_blanks} blanks do not fit {max_tokens} tokens (--max_tokens)"
        )


def _targets(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the outputs to score: one, or a list of them."""
    if "targets" not in fields:
        raise BadRowError('no "targets" to score')
    given = fields["targets"]
    targets = given if isinstance(given, list) else [given]
    if not targets:
        raise BadRowError('"targets" is empty')
    return tuple(_checked("targets", target) for target in targets)


def _text(fields: Mapping[str, Any], name: str, default: str | None) -> str:
    """Returns a field that must be text."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if name not in fields:
        raise BadRowError(f'no "{name}", only {list(fields)[:9]}')
    return _checked(name, value)


def _checked(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRowError(f'"{name}" is no text but {_shown(value)}')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRowError(f'"{name}" holds half of a character') from None
    return value


def _shown(value: Any) -> str:
    """Returns the beginning of a value, for a message."""
    return repr(value)[:40]
