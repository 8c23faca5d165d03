"""The likeliest mistakes of somebody who comes from T5X, seqio or gin."""

from pathlib import Path

from wiring_toys import flags, make_store

from ul2 import cli

# What a person writes, `RECIPE` for the flags of a whole small recipe.
MISTAKES = (
    ("a macro misspelt", "ul2 check RECIPE --gin.BATCH_SIZ=16"),
    ("a macro of T5X", "ul2 check RECIPE --gin.TRAIN_STEPS=100000"),
    (
        "lengths as T5X has them",
        "ul2 check RECIPE --gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512}\"",
    ),
    (
        "a parameter of T5X",
        "ul2 check RECIPE --gin.train/utils.DatasetConfig.batch_size=128",
    ),
    ("a parameter misspelt", "ul2 check RECIPE --gin.optimizers.adafactor.clip=1"),
    ("a gin file of T5X", "ul2 check RECIPE --gin_file=from_t5x.gin"),
    ("a gin file without its folder", "ul2 check RECIPE --gin_file=ul2.gin"),
    (
        "an objective that is not there",
        "ul2 check --gin_file=configs/objectives/u2.gin",
    ),
    ("`gin.` forgotten", "ul2 check RECIPE --BATCH_SIZE=16"),
    ("a flag of T5X", "ul2 train RECIPE --gin_bindings=BATCH_SIZE=16"),
    ("a flag misspelt", "ul2 train RECIPE --gin_fil=mine.gin"),
    ("a command misspelt", "ul2 trian RECIPE"),
    ("no quotes in a gin file", "ul2 check RECIPE --gin_file=no_quotes.gin"),
    (
        "a float for a whole number",
        "ul2 check RECIPE --gin.TOTAL_STEPS=1e5",
    ),
    ("commas in a number", "ul2 check RECIPE --gin.TOTAL_STEPS=100,000"),
    ("a word for a truth value", "ul2 check RECIPE --gin.CAP_SPANS=yes"),
    ("a dtype's short name", "ul2 check RECIPE --gin.DTYPE=bf16"),
    (
        "no model, and a macro not set",
        "ul2 check --gin_file=configs/objectives/ul2.gin "
        "--gin_file=configs/runs/pretrain.gin --gin.DATA=stores/mine "
        "--gin.MODEL_DIR=runs/new",
    ),
    ("a mesh that does not divide (8 devices)", "ul2 check RECIPE --gin.MESH=data=3"),
    ("a mesh with T5X's axis", "ul2 check RECIPE --gin.MESH=model=8"),
    ("a batch that does not divide", "ul2 check RECIPE --gin.BATCH_SIZE=12"),
    ("no token store there", "ul2 check RECIPE --gin.DATA=stores/main"),
    ("text where a token store is wanted", "ul2 check RECIPE --gin.DATA=corpus.jsonl"),
    (
        "lengths too small for a denoiser",
        "ul2 check RECIPE --gin.INPUTS_LENGTH=2 --gin.TARGETS_LENGTH=2",
    ),
    (
        "too few sentinels for the lengths",
        "ul2 check RECIPE --gin.INPUTS_LENGTH=512 --gin.TARGETS_LENGTH=512",
    ),
    (
        "too little text for the lengths",
        "ul2 check RECIPE --gin.INPUTS_LENGTH=9000 --gin.TARGETS_LENGTH=9000 "
        "--gin.CAP_SPANS=True",
    ),
    (
        "a run of another config",
        "ul2 check RECIPE --gin.MODEL_DIR=runs/one --gin.SEED=1",
    ),
    (
        "fewer steps than were made",
        "ul2 check RECIPE --gin.MODEL_DIR=runs/one --gin.TOTAL_STEPS=1",
    ),
    (
        "a checkpoint of another model",
        "ul2 check RECIPE --gin.INITIAL_CHECKPOINT=runs/one --gin.EMBED_DIM=32",
    ),
    (
        "a checkpoint of another vocabulary",
        "ul2 check RECIPE --gin.INITIAL_CHECKPOINT=runs/one --gin.DATA=stores/other",
    ),
    ("a run misspelt", "ul2 infer --checkpoint runs/onee --text 'a ___'"),
    (
        "a checkpoint by its name on a hub",
        "ul2 check RECIPE --gin.INITIAL_CHECKPOINT=google/ul2",
    ),
    ("a task of T5", "ul2 check FINETUNE --gin.TASK=super_glue_boolq_v102"),
    ("a mode by its text", "ul2 check FINETUNE --gin.MODE=[NLU]"),
    (
        "a metric that nothing measures",
        "ul2 check RECIPE --gin.BEST_METRIC=rouge",
    ),
    ("a mixture misspelt", "ul2 eval --checkpoint runs/one --task superglue"),
    ("a step that was not saved", "ul2 infer --checkpoint runs/one --step 9 --text a"),
    (
        "an unknown preset",
        "ul2 convert runs/one --to ul2 --out copy --preset ul2_20",
    ),
    ("an unknown format", "ul2 convert runs/one --to hf --out copy"),
)
# What a flag may be given, and what gin reads.
VALUES = (
    "data=2,fsdp=4",
    "runs/with spaces, and commas",
    "~/runs",
    "2026",
    "1e-3",
    "1_000",
    "10,000",
    "None",
    "True",
    "none",
    "[1, 2]",
    "('a', 0.5)",
    "'quoted'",
    "it's",
    "%SEED",
    "",
)
_FILES = {
    "from_t5x.gin": "from __gin__ import dynamic_registration\nfrom t5x import utils\n",
    "no_quotes.gin": "DATA = stores/mine\n",
}
_FINETUNE = (
    "--gin_file=configs/runs/finetune.gin",
    "--gin.INITIAL_CHECKPOINT=runs/one",
    "--gin.TASK=super_glue_boolq",
    "--gin.MODEL_DIR=runs/new",
    "--gin.TOTAL_STEPS=100",
)


def recipe(**macros):
    """Returns the flags that `RECIPE` stands for."""
    return flags("stores/mine", MODEL_DIR="runs/new", **macros)


def expand(words):
    """Returns a command line with the flags that its short words stand for."""
    short = {"RECIPE": recipe(), "FINETUNE": _FINETUNE}
    return [flag for word in words for flag in short.get(word, [word])]


def make_folder(folder: Path) -> None:
    """Makes what the commands find in the folder that they run in."""
    for name, num_sentinels in (("mine", 40), ("other", 41)):
        store = make_store(_made(folder / name), num_sentinels=num_sentinels)
        _made(folder / "stores")
        store.rename(folder / "stores" / name)
    (folder / "mine" / "corpus.jsonl").rename(folder / "corpus.jsonl")
    for name, text in _FILES.items():
        (folder / name).write_text(text)


def train_one() -> None:
    """Makes `runs/one`, in the folder at hand."""
    assert cli.main(["train", *recipe(TOTAL_STEPS=2), "--gin.MODEL_DIR=runs/one"]) == 0


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
