"""A person and a model: texts in, answers out, settings changed in between.

> A ___ walks into a ___.
A man walks into a bar.
> /mode S
> /temperature 0.7
> Once upon a time
 there was ...
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Final

from ul2.decoding.text_model import TextModel
from ul2.inference.modes import misfit
from ul2.inference.requests import BadRowError, Request, make_request
from ul2.inference.rows import Row
from ul2.inference.settings import InferenceSettings, read_mode

_HELP: Final = """\
A text is answered; ___ in it is a blank to fill.
/mode R|S|X|none       what is announced in front of the text
/max_tokens N          longest answer
/temperature T         0 takes the likeliest token
/top_k N  /top_p P     draw among the likeliest tokens alone
/beams N               beam search; 0 for none
/num_decodes N         answers to a text
/repetition_penalty P  /no_repeat_ngram N  /length_penalty A  /seed N
/prefix TEXT           what answers begin with; nothing for no prefix
/score TEXT            how likely that would have been as the last answer
/settings              what is set
/help  /quit"""
_COUNTS: Final = ("max_tokens", "top_k", "num_decodes", "no_repeat_ngram", "seed")
_NUMBERS: Final = ("temperature", "top_p", "repetition_penalty", "length_penalty")


class Session:
    """A conversation in which no text depends on those before it."""

    def __init__(
        self,
        model: TextModel,
        settings: InferenceSettings,
        read: Callable[[], str | None],
        write: Callable[[str], Any],
    ) -> None:
        """Prepares a session.

        Args:
            model: answers.
            settings: at the start.
            read: returns a line of the person's, None at the end.
            write: shows text; line ends are in the text.
        """
        self._model, self._settings = model.one_at_a_time, settings
        self._read, self._write = read, write
        self._last: str | None = None
        self._num_asked = 0
        self._said: set[str] = set()
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._say(_HELP),
            "settings": lambda _: self._show_settings(),
            "mode": lambda text: self._set(mode=read_mode(text or "none")),
            "prefix": lambda text: self._set(prefix=text),
            "score": self._score,
            "beams": self._set_beams,
            **{name: self._setter(name, int) for name in _COUNTS},
            **{name: self._setter(name, float) for name in _NUMBERS},
        }

    def run(self) -> int:
        """Answers until the person leaves.

        Returns:
            How many texts were asked.
        """
        self._say("Write a text, or /help.")
        while (line := self._read()) is not None:
            line = line.strip()
            if line == "/quit":
                break
            try:
                # Ctrl-C stops an answer, not the session.
                with contextlib.suppress(KeyboardInterrupt):
                    self._obey(line)
            except ValueError as error:
                self._say(f"error: {error}")
        return self._num_asked

    def _obey(self, line: str) -> None:
        if not line:
            return
        if not line.startswith("/"):
            self._answer(line)
            return
        name, _, argument = line[1:].partition(" ")
        if name not in self._commands:
            raise ValueError(f"/{name} is no command; /help shows them.")
        self._commands[name](argument.strip())

    def _answer(self, text: str) -> None:
        request = self._request({"inputs": text})
        self._last = text
        number = self._num_asked
        self._num_asked += 1
        decoding = self._settings.decoding
        streams = decoding.num_decodes == 1 and not decoding.num_beams
        stream = _Stream(self._model, self._write, request.prompt.forced)
        (outputs,) = self._model.generate_from(
            [request.prompt],
            decoding,
            numbers=[number],
            on_tokens=stream if streams and not request.prompt.num_blanks else None,
            keep_sentinels=self._settings.keep_sentinels,
        )
        for output in outputs:
            shown = output.text
            if request.prompt.num_blanks:
                shown = self._model.fill(text, output)
            score = f"   {output.score:.4f}" if len(outputs) > 1 else ""
            self._say(stream.rest(shown) + score)

    def _score(self, target: str) -> None:
        if self._last is None:
            raise ValueError("/score needs a text before it.")
        request = self._request({"inputs": self._last})
        ids = self._model.encode_target(request.prompt, target)
        (score,) = self._model.score_from([request.prompt], [ids])
        self._say(f"{score.log_prob:.4f} over {score.num_tokens} tokens")

    def _request(self, fields: dict[str, Any]) -> Request:
        """Returns a text as the model reads it, and warns where that is odd."""
        try:
            request = make_request(Row(0, fields), self._model, self._settings)
        except BadRowError as error:
            raise ValueError(f"{error}.") from None
        line = misfit(self._model.trained_modes, request.mode)
        if line is not None and line not in self._said:
            self._said.add(line)
            self._say(f"warning: {line}")
        if request.prompt.num_cut:
            self._say(f"warning: {request.prompt.num_cut} tokens were cut off.")
        return request

    def _setter(
        self, name: str, kind: Callable[[str], int | float]
    ) -> Callable[[str], None]:
        def change(text: str) -> None:
            try:
                value = kind(text)
            except ValueError:
                raise ValueError(f"/{name} {text}: not a number.") from None
            self._set_decoding(**{name: value})

        return change

    def _set_beams(self, text: str) -> None:
        if not text.isdecimal():
            raise ValueError(f"/beams {text}: not a number.")
        beams = int(text)
        # One excludes the other; what was asked for last counts.
        temperature = 0.0 if beams else self._settings.decoding.temperature
        self._set_decoding(num_beams=beams, temperature=temperature)

    def _set_decoding(self, **changes: Any) -> None:
        if changes.get("temperature"):
            changes["num_beams"] = 0
        decoding = dataclasses.replace(self._settings.decoding, **changes)
        self._set(decoding=decoding)

    def _set(self, **changes: Any) -> None:
        self._settings = dataclasses.replace(self._settings, **changes)

    def _show_settings(self) -> None:
        fields = self._settings.to_json()
        self._say("  ".join(f"{name}={fields[name]}" for name in fields))

    def _say(self, line: str) -> None:
        self._write(f"{line}\n")


class _Stream:
    """Shows an output while it grows."""

    def __init__(
        self, model: TextModel, write: Callable[[str], Any], forced: list[int]
    ) -> None:
        self._model, self._write = model, write
        self._ids = [*forced]
        self._shown = ""

    def __call__(self, number: int, decode: int, tokens: list[int]) -> None:
        """Shows what more there is; half a character waits for its other half."""
        del number, decode  # there is only one
        self._ids += tokens
        text = self._model.tokenizer.decode(self._ids)
        if text.startswith(self._shown) and not text.endswith(
            "\N{REPLACEMENT CHARACTER}"
        ):
            self._write(text[len(self._shown) :])
            self._shown = text

    def rest(self, text: str) -> str:
        """Returns the part of the whole output that was not shown yet."""
        if text.startswith(self._shown):
            return text[len(self._shown) :]
        return f"\n{text}"
