"""`InferenceSettings`: what is done with every row that does not say otherwise."""

import dataclasses
from typing import Any, Final

from ul2.decoding.settings import DecodingSettings
from ul2.vocab import MODES, mode_meant

NO_MODE: Final = "none"
ON_LONG: Final = ("truncate", "refuse")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """What is done with every row that does not say otherwise.

    Attributes:
        mode: R, S or X, announced in front of the inputs; None for no mode.
        prefix: text that outputs must begin with.
        decoding: how outputs are chosen; its `max_tokens` is also the most that a row
            may ask for.
        score: score the `targets` of rows instead of decoding.
        keep_sentinels: let the outputs of texts without blanks hold sentinels.
        max_inputs: longest inputs in tokens, mode and EOS included; None for what the
            checkpoint was trained on, if that is known.
        on_long: `truncate` cuts the end of longer texts off, `refuse` reports them.
        batch_size: rows that are decoded together.
    """

    mode: str | None = None
    prefix: str = ""
    decoding: DecodingSettings = dataclasses.field(default_factory=DecodingSettings)
    score: bool = False
    keep_sentinels: bool = False
    max_inputs: int | None = None
    on_long: str = "truncate"
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if self.on_long not in ON_LONG:
            raise ValueError(f"--on_long={self.on_long} is not one of {list(ON_LONG)}.")
        for name in ("batch_size", "max_inputs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}={value} must be at least 1.")

    def to_json(self) -> dict[str, Any]:
        """Returns every field by its flag, as plain JSON values."""
        fields = dataclasses.asdict(self)
        return {**fields.pop("decoding"), **fields}


def check_mode(mode: Any) -> None:
    """Refuses what is no mode.

    Raises:
        ValueError: it is not R, S, X or None.
    """
    if mode is not None and mode not in MODES:
        raise ValueError(
            f"mode {mode!r} is not one of {', '.join(MODES)} or {NO_MODE}"
            f"{mode_meant(mode)}."
        )


def read_mode(text: str | None) -> str | None:
    """Returns the mode that a person wrote: R, S, X or none.

    Raises:
        ValueError: it is something else.
    """
    mode = None if text == NO_MODE else text
    check_mode(mode)
    return mode
