"""Held-out text, scored per denoiser, under any mode.

The denoisers are those of the run itself, as its checkpoint says, or of any other
objective. At the run's own lengths, batch size and number of batches these are the
numbers that the run reported while it was trained, to the last digit.

A model may be asked in another mode than the one that a denoiser was trained in: if
its losses do not change, it does not listen to its modes.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, Final

import jax
from jax.sharding import Mesh

from ul2.data.corpus import Corpus
from ul2.data.run_data import Layout
from ul2.data.token_store import TokenStore
from ul2.denoising.denoisers import Denoiser
from ul2.denoising.mixture import Mixture
from ul2.evaluation.teacher_forced import split_model
from ul2.sharding.placement import host_rows, num_batch_shards, place
from ul2.tasks.tokenizer import pieces_of
from ul2.training.checkpoints import Contract, check_vocab
from ul2.training.evaluate import evaluate
from ul2.training.step import make_eval_step
from ul2.vocab import Vocab

# Each denoiser in the mode it was trained in.
OWN_MODES: Final = "own"
_LOSS_CHUNK: Final = 128
_SPLITS: Final = {"validation": "held_out", "held_out": "held_out", "train": "train"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """Which text, and how it is masked.

    Attributes:
        data: path of a token store.
        mixture: the denoisers.
        inputs_length: longest inputs of an example, in tokens.
        targets_length: longest targets.
        batch_size: examples that are scored together.
        batches: how many such.
        split: of the store.
    """

    data: str
    mixture: Mixture
    inputs_length: int = 512
    targets_length: int = 512
    batch_size: int = 112
    batches: int = 4
    split: str = "validation"

    def to_json(self) -> dict[str, Any]:
        """Returns what a result depends on, as plain JSON values."""
        store = TokenStore.open(self.data)
        fields = dataclasses.asdict(self)
        fields["data"] = store.fingerprint(_SPLITS[self.split])
        return fields

    def evaluate(
        self, model: Any, vocab: Vocab, mode: str | None, mesh: Mesh
    ) -> dict[str, Any]:
        """Returns loss, accuracy and unigram entropy, overall and per denoiser.

        Args:
            model: its parameters lie on `mesh`.
            vocab: what it was trained on.
            mode: `own`, or what stands in front of all inputs.
            mesh: where it runs.

        Raises:
            ValueError: the text is of another vocabulary, or too short.
        """
        definition, params = split_model(model)
        names = self.mixture.names
        step = make_eval_step(
            definition,
            mesh,
            param_shardings=jax.tree.map(lambda leaf: leaf.sharding, params),
            num_denoisers=len(names),
            vocab_size=vocab.padded_size,
            loss_chunk=_LOSS_CHUNK,
        )
        source = self._corpus(model.architecture, vocab, mode, mesh).source(
            _SPLITS[self.split]
        )
        batches = (source[index] for index in range(self.batches))
        return evaluate(step, params, batches, lambda rows: place(rows, mesh), names)

    def _corpus(
        self, architecture: str, vocab: Vocab, mode: str | None, mesh: Mesh
    ) -> Corpus:
        """Returns the text, masked and laid out as in training."""
        store = TokenStore.open(self.data)
        convention = vocab.mode_convention
        of_store = store.vocab.with_mode_convention(convention)
        check_vocab(vocab, of_store, what="the checkpoint")
        layout = Layout(
            architecture=architecture,
            inputs_length=self.inputs_length,
            targets_length=self.targets_length,
            batch_size=self.batch_size,
            seed=0,
            shards=num_batch_shards(mesh),
            host=host_rows(mesh),
        )
        own = mode == OWN_MODES
        mixture = self.mixture if own else self.mixture.in_mode(mode)
        pieces = functools.partial(pieces_of, store.tokenizer_path, store.vocab)
        return Corpus(store, mixture, layout, convention, pieces)


def text_of_run(
    data: str,
    contract: Contract | None,
    mixture: Mixture | None,
    given: Mapping[str, int | None],
    split: str,
) -> HeldOutText:
    """Returns how a checkpoint's text is masked: as in its training, if not given.

    Args:
        data: path of a token store.
        contract: of a run of ours; None for any other checkpoint.
        mixture: the objective to score, if not the run's own.
        given: `inputs_length`, `targets_length`, `batch_size` and `batches`, where the
            user gave them.
        split: validation or train.

    Raises:
        ValueError: the checkpoint does not say its mixture, and none is given.
    """
    if split not in _SPLITS:
        raise ValueError(f"--split={split}: text has validation and train.")
    if mixture is None:
        if contract is None or contract.mixture is None:
            raise ValueError(
                "this checkpoint does not say which objective it was trained on; add "
                "--gin_file=configs/objectives/NAME.gin."
            )
        mixture = mixture_from_json(contract.mixture)
    numbers = read_numbers(contract.config_text) if contract is not None else {}
    numbers |= {name: value for name, value in given.items() if value is not None}
    return HeldOutText(data=data, mixture=mixture.settled, split=split, **numbers)


def mixture_from_json(fields: Mapping[str, Any]) -> Mixture:
    """Reads the mixture of a contract.

    Raises:
        ValueError: it is damaged.
    """
    if "denoisers" not in fields:
        raise ValueError(
            "this checkpoint was trained on tasks, not on denoisers; add "
            "--gin_file=configs/objectives/NAME.gin."
        )
    try:
        denoisers = tuple(Denoiser(**one) for one in fields["denoisers"])
        rates = tuple(map(float, fields["rates"]))
        return Mixture(denoisers, rates, bool(fields["cap_spans"]))
    except (TypeError, KeyError) as error:
        raise ValueError(f"the checkpoint's mixture is damaged: {error}.") from None


def read_numbers(config_text: str) -> dict[str, int]:
    """Returns the lengths and sizes in the config of a run; it is read, never run.

    recipe.Recipe.inputs_length = %INPUTS_LENGTH
    INPUTS_LENGTH = 128                            ->   {"inputs_length": 128}
    """
    names = {
        "inputs_length": "inputs_length",
        "targets_length": "targets_length",
        "batch_size": "batch_size",
        "eval_batches": "batches",
    }
    found = re.findall(r"^([\w./]+) = (\S+)$", config_text, re.MULTILINE)
    values: dict[str, str] = dict(found)
    numbers = {}
    for name, value in values.items():
        field = names.get(name.rpartition(".")[2])
        number = values.get(value.removeprefix("%"), value)
        if field and number.isdecimal() and int(number) > 0:
            numbers[field] = int(number)
    return numbers
