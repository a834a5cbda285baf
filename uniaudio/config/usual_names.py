"""Names that other trainers and toolkits have for our settings, so that an unknown key is answered with ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class UsualNames:
    """What to write in one kind of file in place of names that are usual elsewhere.

    Args:
        file: what this kind of file is called. mark: a key that every file of the kind has, and no other.
        keys: other name -> our keys, as ``list_key_places`` writes them.
        notes: our key -> what its value is, where it differs from that of the usual setting.
        sentences: other name -> what holds instead, where no key has that meaning.
    """

    file: str = ""
    mark: str = ""
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    sentences: Mapping[str, str] = field(default_factory=dict)


def invert_names(usual: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Turn our key -> other names, separated by blanks, into other name -> our keys."""
    keys: dict[str, tuple[str, ...]] = {}
    for key, names in usual.items():
        for name in names.split():
            keys[name] = (*keys.get(name, ()), key)
    return keys


def repeat_sentence(sentences: Mapping[str, str]) -> dict[str, str]:
    """Turn sentence -> names, separated by blanks, into name -> sentence."""
    return {name: sentence for sentence, names in sentences.items() for name in names.split()}


LEARNING_RATE = "lr learning_rate max_lr peak_lr base_lr init_lr"
MODEL = (
    "model model_name model_id model_path model_name_or_path name pretrained pretrained_model checkpoint ckpt"
)
FREEZE = "freeze frozen trainable requires_grad unfreeze"
CHECKPOINTING = (
    "gradient_checkpointing activation_checkpointing grad_checkpointing use_gradient_checkpointing"
)

RUN_NAMES = UsualNames(
    "run config",
    "stages",
    invert_names(
        {
            "encoders": "encoder audio_encoder audio_tower backbone",
            "encoders.NAME.path": MODEL,
            "encoders.NAME.train": f"{FREEZE} freeze_encoder",
            "encoders.NAME.lr": f"{LEARNING_RATE} encoder_lr",
            "encoders.NAME.kind": "type model_type",
            "encoders.NAME.recompute": CHECKPOINTING,
            "encoders.NAME.lora.rank": "r lora_r lora_rank",
            "encoders.NAME.lora.alpha": "lora_alpha",
            "encoders.NAME.lora.dropout": "lora_dropout dropout",
            "encoders.NAME.lora.targets": "target_modules lora_target_modules",
            "fusion.kind": "type",
            "fusion.lr": LEARNING_RATE,
            "fusion.experts": "num_experts n_experts",
            "fusion.top_k": "topk k num_experts_per_tok",
            "fusion.hidden": "hidden_size hidden_dim",
            "fusion.dim": "embed_dim output_dim d_model",
            "adapter": "projector connector",
            "adapter.kind": "type projector_type",
            "adapter.lr": f"{LEARNING_RATE} adapter_lr projector_lr",
            "adapter.hidden": "hidden_size hidden_dim dim",
            "decoder": "llm lm language_model",
            "decoder.path": f"{MODEL} llm_path",
            "decoder.train": f"{FREEZE} freeze_llm freeze_decoder",
            "decoder.lr": LEARNING_RATE,
            "decoder.recompute": CHECKPOINTING,
            "decoder.dtype": "torch_dtype load_in_8bit load_in_4bit quantization quantization_config",
            "decoder.attention": "attn_implementation attention_implementation flash_attention use_flash_attention",
            "decoder.lora.rank": "r lora_r lora_rank",
            "decoder.lora.alpha": "lora_alpha",
            "decoder.lora.dropout": "lora_dropout dropout",
            "decoder.lora.targets": "target_modules lora_target_modules",
            "data.workers": "num_workers dataloader_num_workers n_workers num_proc",
            "data.prefetch": "prefetch_factor",
            "data.window": "shuffle shuffle_buffer shuffle_buffer_size buffer_size",
            "data.max_seconds": "max_duration max_audio_length max_audio_seconds max_length",
            "data.max_text_tokens": "max_length max_seq_len max_seq_length model_max_length",
            "train.micro_batches": "gradient_accumulation_steps gradient_accumulation grad_accum grad_accum_steps "
            "accumulate_grad_batches accumulation_steps accum_grad",
            "train.clip": "max_grad_norm grad_clip gradient_clip gradient_clip_val gradient_clipping clip_grad_norm",
            "train.betas": "adam_beta1 adam_beta2 adam_betas",
            "train.precision": "fp16 bf16 mixed_precision amp dtype",
            "train.log_every": "logging_steps log_steps log_interval log_every_n_steps",
            "train.save_every": "save_steps save_interval save_strategy checkpoint_every checkpoint_interval",
            "train.keep_last": "save_total_limit max_checkpoints keep_checkpoints",
            "train.evaluate_every": "eval_steps eval_every eval_interval eval_strategy evaluation_strategy "
            "val_check_interval validate_every val_every",
            "train.compile": "torch_compile",
            "train.trackers": "report_to logger loggers tracker wandb mlflow",
            "train.project": "wandb_project project_name experiment experiment_name",
            "stages[].recipe": "dataset datasets data train_data train_dataset",
            "stages[].steps": "steps max_steps num_steps total_steps max_iters iterations epochs num_epochs max_epochs "
            "num_train_epochs",
            "stages[].warmup": "warmup_steps warmup_ratio warmup_pct warmup_epochs num_warmup_steps",
            "stages[].schedule": "scheduler lr_scheduler lr_scheduler_type lr_schedule",
            "stages[].final_lr_share": "min_lr end_lr final_lr eta_min min_lr_ratio",
            "stages[].budget.audio_seconds": "batch_size train_batch_size per_device_train_batch_size "
            "batch_seconds max_batch_duration",
            "stages[].budget.tokens": "max_tokens batch_tokens",
            "stages[].continual.distill": "distillation kd lwf",
            "stages[].continual.ema": "ema_decay moving_average",
            "evaluate.batch_seconds": "batch_size eval_batch_size per_device_eval_batch_size",
            "evaluate.max_examples": "max_eval_samples num_examples max_samples",
            "evaluate.max_new_tokens": "max_length max_tokens generation_max_length",
            "guard": "early_stopping early_stopping_patience early_stop patience",
        }
    ),
    {
        "encoders.NAME.train": "which is full, lora or frozen",
        "decoder.train": "which is frozen, lora or full",
        "stages[].steps": "in optimizer steps",
        "stages[].warmup": "a number of steps",
        "stages[].final_lr_share": "a share of the peak",
        "stages[].budget.audio_seconds": "the seconds of audio in a micro-batch",
        "evaluate.batch_seconds": "in seconds of audio",
        "train.micro_batches": "the micro-batches of one step over all processes",
        "guard": "which stops on probe scores, not on the loss",
    },
    repeat_sentence(
        {
            "the optimizer is always AdamW, with `train.weight_decay` and `train.betas`": "optimizer optim",
            "no best checkpoint is selected; `train.keep_every` keeps some to choose from": (
                "load_best_model_at_end metric_for_best_model save_best best_model"
            ),
            "to continue a run, give `uniaudio train` the option --resume": "resume resume_from resume_from_checkpoint",
            "`uniaudio launch ENGINE CONFIG` chooses processes and engine": "strategy deepspeed engine fsdp ddp "
            "distributed accelerator devices num_gpus",
            "`replay` is a key of the recipe": "replay rehearsal",
            "`augment` is a key of a recipe's entries": "augment augmentation augmentations specaugment spec_augment",
            "`scoring` is a key of the template": "metric metrics scoring",
            "answers are decoded greedily": "num_beams beams beam_size do_sample top_p",
            "all clips are resampled to 16 kHz": "sample_rate sampling_rate",
        }
    ),
)

RECIPE_NAMES = UsualNames(
    "recipe",
    "recipe",
    invert_names(
        {
            "train": "datasets data sources tasks mixture",
            "train[].dataset": "name card path",
            "train[].template": "task prompt prompts templates",
            "train[].weight": "prob probability ratio share sampling_weight weights",
            "train[].augment": "augmentation augmentations specaugment spec_augment transforms",
            "replay": "rehearsal",
            "replay[].share": "ratio weight fraction prob probability",
            "evaluate": "eval test valid validation dev",
            "evaluate[].scoring": "metric metrics",
            "evaluate[].max_examples": "max_samples num_examples limit",
            "mix": "mixing sampling",
        }
    ),
    {"train[].weight": "a relative sampling weight of rows", "replay[].share": "a share of all examples"},
    repeat_sentence(
        {"how often a dataset is seen follows from `weight` and the stage's steps": "epochs repeat"}
    ),
)

CARD_NAMES = UsualNames(
    "dataset card",
    "dataset",
    invert_names(
        {
            "dataset": "name",
            "load": "path file files data_files data_dir folder source url",
            "load.hub": "hf huggingface repo repo_id",
            "load.webdataset": "tar tars wds shards",
            "load.jsonl": "json manifest",
            "load.csv": "tsv table",
            "load.audiofolder": "folder directory audio_folder",
            "load.config": "subset name",
            "audio": "audio_column audio_path wav",
            "columns": "label text caption target transcript",
            "splits.NAME.keep": "filter where condition select query",
            "splits.NAME.name": "split",
        }
    ),
    {"columns": "inputs of templates by name", "splits.NAME.keep": "a condition on a row"},
    repeat_sentence({"all clips are resampled to 16 kHz": "sample_rate sampling_rate"}),
)

TEMPLATE_NAMES = UsualNames(
    "template",
    "task",
    invert_names(
        {
            "task": "name",
            "inputs": "columns fields variables",
            "labels": "classes choices options candidates label_names",
            "prompts": "prompt question questions instruction instructions template templates",
            "target": "answer answers output response completion",
            "target_one_of": "references targets captions",
            "scoring.metric": "metric metrics",
            "scoring.normalize": "normalization normalizer",
        }
    ),
)

SUITE_NAMES = UsualNames(
    "probe suite",
    "suite",
    invert_names(
        {
            "tasks": "datasets",
            "tasks.NAME.column": "label labels target answer",
            "tasks.NAME.kind": "type task_type",
            "tasks.NAME.max_clips": "max_examples max_samples limit",
            "tasks.NAME.test": "split",
            "tasks.NAME.valid": "val validation dev",
            "tasks.NAME.batch": "batch_size",
        }
    ),
)

FILES = {
    names.mark: names.file for names in (RUN_NAMES, RECIPE_NAMES, CARD_NAMES, TEMPLATE_NAMES, SUITE_NAMES)
}
