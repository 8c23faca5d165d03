"""What T5X calls what gin files set here, for those who come from there.

From t5x/configs/runs/{pretrain,finetune,eval,infer}.gin and the model files of
t5x/examples (2026-04). T5X binds some of it to a macro in one file and to a parameter
in another, so both are listed.
"""

from typing import Final

# A macro of T5X, and what to set instead.
_MACROS: Final = {
    "TRAIN_STEPS": "TOTAL_STEPS, which counts the updates of this run alone",
    "MIXTURE_OR_TASK_NAME": "DATA, a token store, or TASK to fine-tune",
    "MIXTURE_OR_TASK_MODULE": "--import_module",
    "TASK_FEATURE_LENGTHS": "INPUTS_LENGTH and TARGETS_LENGTH",
    "INITIAL_CHECKPOINT_PATH": "INITIAL_CHECKPOINT",
    "CHECKPOINT_PATH": "ul2 eval --checkpoint or ul2 infer --checkpoint",
    "EVAL_OUTPUT_DIR": "ul2 eval --out",
    "INFER_OUTPUT_DIR": "ul2 infer --output",
    "RANDOM_SEED": "SEED",
    "EVAL_STEPS": "EVAL_BATCHES",
    "EVAL_PERIOD": "EVAL_EVERY_STEPS",
    "LOSS_NORMALIZING_FACTOR": "LOSS_NORMALIZER",
    "ACTIVATION_DTYPE": "DTYPE",
    "USE_CACHED_TASKS": "nothing: text is always tokenized beforehand",
    "SHUFFLE_TRAIN_EXAMPLES": "nothing: text is always shuffled, by SEED",
    "USE_HARDWARE_RNG": "nothing: what is drawn depends on SEED alone",
    "ACTIVATION_PARTITIONING_DIMS": "MESH",
    "PARAMETER_PARTITIONING_DIMS": "MESH",
    "LABEL_SMOOTHING": "nothing: the loss is never smoothed",
    "MODEL": "--gin_file=configs/models/NAME.gin",
    "OPTIMIZER": "--gin_file=configs/runs/pretrain.gin or pretrain_adamw.gin",
    "VOCABULARY": "ul2 tokenize --vocab",
    "NUM_EMBEDDINGS": "ul2 tokenize --vocab",
}
# `Class.parameter` of T5X, and the macro.
_PARAMETERS: Final = {
    "train.model_dir": "MODEL_DIR",
    "train.total_steps": "TOTAL_STEPS",
    "train.eval_steps": "EVAL_BATCHES",
    "train.eval_period": "EVAL_EVERY_STEPS",
    "train.random_seed": "SEED",
    "DatasetConfig.mixture_or_task_name": "DATA",
    "DatasetConfig.task_feature_lengths": "INPUTS_LENGTH and TARGETS_LENGTH",
    "DatasetConfig.batch_size": "BATCH_SIZE",
    "DatasetConfig.seed": "SEED",
    "DatasetConfig.module": "--import_module",
    "SaveCheckpointConfig.period": "SAVE_EVERY_STEPS",
    "SaveCheckpointConfig.keep": "KEEP_CHECKPOINTS",
    "SaveCheckpointConfig.dtype": "PARAM_DTYPE",
    "RestoreCheckpointConfig.path": "INITIAL_CHECKPOINT",
    "PjitPartitioner.num_partitions": "MESH",
    "PjitPartitioner.model_parallel_submesh": "MESH",
    "PjitPartitioner.logical_axis_rules": "MESH",
    "ModelBasedPjitPartitioner.num_partitions": "MESH",
    "ModelBasedPjitPartitioner.model_parallel_submesh": "MESH",
    "Trainer.num_microbatches": "MICROBATCHES",
    "create_learning_rate_scheduler.base_learning_rate": "LEARNING_RATE",
    "create_learning_rate_scheduler.warmup_steps": "WARMUP_STEPS",
    "create_learning_rate_scheduler.factors": "--gin_file=configs/runs/NAME.gin",
    "EncoderDecoderModel.z_loss": "Z_LOSS",
    "DecoderOnlyModel.z_loss": "Z_LOSS",
    "T5Config.emb_dim": "EMBED_DIM",
    "T5Config.num_heads": "NUM_HEADS",
    "T5Config.head_dim": "HEAD_DIM",
    "T5Config.mlp_dim": "MLP_DIM",
    "T5Config.num_encoder_layers": "NUM_ENCODER_LAYERS",
    "T5Config.num_decoder_layers": "NUM_DECODER_LAYERS",
    "T5Config.dropout_rate": "DROPOUT_RATE",
    "T5Config.dtype": "DTYPE",
}
_MODULES: Final = frozenset({"t5x", "t5", "seqio", "flaxformer", "__main__"})
_FLAGS: Final = {
    "gin_bindings": "--gin.NAME=VALUE, one for each",
    "gin_search_paths": "the whole path in --gin_file",
    "model_dir": "--gin.MODEL_DIR=DIR",
    "tfds_data_dir": "--data_dir=DIR, or --gin.DATA_DIR=DIR to train",
    "multiprocess_gpu": "nothing: see ul2 train --help",
    "run_mode": "ul2 train, eval or infer",
}


def instead_of_macro(name: str) -> str | None:
    """Returns what to set instead of a macro of T5X; None for a name not T5X's."""
    return _MACROS.get(name)


def instead_of_parameter(name: str) -> str | None:
    """Returns what to set instead of a parameter of T5X; None for one not T5X's.

    train/utils.DatasetConfig.batch_size   ->   BATCH_SIZE
    """
    return _PARAMETERS.get(".".join(name.rpartition("/")[2].split(".")[-2:]))


def instead_of_flag(name: str) -> str | None:
    """Returns what to write instead of a flag of T5X; None for one not T5X's."""
    return _FLAGS.get(name)


def is_module(name: str) -> bool:
    """Returns whether gin files of T5X import a module."""
    return name.partition(".")[0] in _MODULES
