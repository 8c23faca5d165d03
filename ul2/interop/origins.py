"""A checkpoint of T5X or Hugging Face as what a new run starts from."""

from ul2.interop.checkpoint import Checkpoint
from ul2.models import architectures
from ul2.training import checkpoints, origin
from ul2.training.origin import Origin


def of_checkpoint(opened: Checkpoint) -> Origin:
    """Returns the origin that a checkpoint of another format is."""
    contract = checkpoints.Contract(
        step=0,
        data_position=None,
        vocab=opened.vocab,
        config_text="",
        mixture=None,
        model=architectures.to_json(opened.architecture, opened.config),
        prior_steps=opened.moments.step if opened.moments else opened.step,
    )
    return origin.of_arrays(
        opened.path,
        contract,
        opened.params,
        opened.moments,
        tokenizer=opened.tokenizer,
    )
