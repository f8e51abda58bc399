"""Names of keys in other frameworks, and hints for keys that do not exist."""

from collections.abc import Mapping, Sequence

from slm.classes import did_you_mean

SAME_KEY = {  # a key of Lightning or lightning-hydra-template that has the meaning of one of ours
    "trainer.max_steps": "budget.steps",
    "trainer.max_epochs": "budget.epochs",
    "trainer.max_time": "budget.max_time",
    "trainer.log_every_n_steps": "log_every_n_steps",
    "ckpt_path": "resume",
    "task_name": "name",
    "hydra.run.dir": "run_dir",
    "paths.output_dir": "run_dir",
    "paths.log_dir": "runs_dir",
    "paths.data_dir": "data.path",
    "seeds": "hydra.sweeper.seeds",  # of an ablation, as are the next two
    "detect": "hydra.sweeper.detect",
    "only": "hydra.sweeper.only",
}
NAMES = {  # our key -> last parts of the key in nanoGPT, Hugging Face, litgpt or Lightning
    "model.depth": "n_layer n_layers num_layers num_hidden_layers layers",
    "model.width": "n_embd n_embed d_model hidden_size dim hidden_dim embed_dim",
    "model.head_dim (heads = width / head_dim)": "n_head n_heads num_heads num_attention_heads heads",
    "model.kv_heads": "n_kv_head n_kv_heads num_kv_heads num_key_value_heads n_query_groups",
    "model.context": (
        "block_size seq_len seq_length max_seq_len max_seq_length sequence_length n_positions context_length "
        "max_position_embeddings n_ctx"
    ),
    "model.mlp_width": "intermediate_size d_ff ffn_dim ff_dim mlp_ratio",
    "model.tied": "tie_embeddings tie_word_embeddings weight_tying tie_weights",
    "model.mlp": "activation hidden_act act_fn",
    "model.positions": "pos pos_emb position_embedding_type pos_encoding",
    "model.rope_base": "rope_theta",
    "model.norm_eps": "layer_norm_eps layer_norm_epsilon rms_norm_eps eps_norm",
    "model.parametrization": "mup use_mup mup_enabled",
    "model.base_width": "mup_base_width mup_base_dim d_model_base",
    "model.init_std": "initializer_range init_range weight_init_std",
    "model.embedding_dropout": "emb_dropout embd_pdrop embed_dropout",
    "model.attention_dropout": "attn_dropout attn_pdrop",
    "model.residual_dropout": "resid_dropout resid_pdrop hidden_dropout",
    "model.head_bias": "lm_head_bias",
    "model.window": "sliding_window window_size",
    "data.batch_windows (windows per step)": "batch_size global_batch_size total_batch_size",
    "trainer.microbatch (windows per pass)": "micro_batch_size device_batch_size per_device_train_batch_size",
    "trainer.accumulate_grad_batches": "accumulate accum gradient_accumulation_steps grad_accum accumulation_steps",
    "data.train_ratio": "split train_split val_ratio val_split validation_split test_size",
    "data.order": "shuffle",
    "data.joined": "doc_separator document_separator",
    "data.workers": "num_workers dataloader_num_workers",
    "optimizer.lr": "learning_rate max_lr lr",
    "schedule.min_lr_ratio": "min_lr eta_min final floor",
    "schedule.min_lr_clips": "floor_mode",
    "schedule.warmup_start": "start_factor",
    "schedule.warmup_steps": "warmup_iters warmup num_warmup_steps lr_warmup_steps",
    "schedule.warmup_fraction": "warmup_ratio warmup_share",
    "schedule": "lr_scheduler scheduler lr_scheduler_type",
    "optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.weight_decay": "wd",
    "budget.steps": "max_iters num_steps train_steps max_steps num_iterations",
    "budget.epochs": "epochs num_train_epochs max_epochs num_epochs",
    "budget.tokens": "max_tokens",
    "budget.max_cost": "cost",
    "plan=true": "action estimate dry_run params",
    "trainer.gradient_clip_val": "grad_clip max_grad_norm max_norm clip_grad clip",
    "val_every_n_steps": "eval evaluation eval_interval eval_steps eval_every val_check_interval val_interval",
    "log_every_n_steps": "log log_interval logging_steps log_every",
    "callbacks.checkpoints.every_n_steps": "checkpoint save_steps save_interval every_n_train_steps save_every",
    "callbacks.samples.every_n_steps": "sample sample_interval",
    "callbacks.samples.sampler.temperature (and its other keys)": "sampler",
    "callbacks.checkpoints.keep_last": "save_top_k save_total_limit",
    "data.validation_windows": "batches eval_iters max_eval_batches",
    "data.validated_train_windows": "splits eval_train",
    "trainer.precision": "dtype bf16 fp16 mixed_precision",
    "trainer.accelerator": "device",
    "trainer.devices": "gpus n_gpus num_gpus nproc_per_node",
    "run_dir": "out_dir output_dir save_dir logdir log_dir",
    "data": "dataset dataset_name datamodule",
    "data.path": "data_dir data_path train_file input_file",
    "tokenizer.vocab_size": "vocab_size",
    "resume": "resume_from_checkpoint init_from resume_from from_checkpoint",
    "logger.wandb.project (with logger=wandb)": "wandb_project",
    "logger=null": "no_wandb disable_wandb",
    "logger=wandb": "wandb use_wandb wandb_log report_to",
    "name": "run_name experiment_name exp_name",
    "callbacks.early_stopping.patience": "early_stopping_patience patience",
    "seed": "random_seed torch_seed",
    "trainer.compile": "compile_model torch_compile",
    "callbacks": "hooks",
    "hydra.launcher.n_jobs": "njobs num_jobs n_workers",
    "experiment": "config config_file",
}
OPTIONS = {  # group=option -> names of the option elsewhere; a name with a word of an option needs none
    "experiment=slm_notebook": "tinystories",
    "tokenizer=characters": "char ascii",
    "trainer=gpu": "cuda",
    "trainer=mps": "mac apple",
    "schedule=cosine": "warmup_cosine",
}
REFUSED_TRAINER_KEYS = {  # keywords of Lightning's Trainer that would break exact resume, or that a run sets itself
    "limit_train_batches": "budget.steps sets how many steps a run takes, data.train_windows how many windows it reads",
    "overfit_batches": "use debug=overfit, or data.train_windows=<n>",
    "val_check_interval": "use val_every_n_steps, in optimizer steps",
    "check_val_every_n_epoch": "use val_every_n_steps, in optimizer steps",
    "min_steps": "a run always takes budget.steps, unless callbacks.early_stopping ends it",
    "min_epochs": "a run always takes budget.steps, unless callbacks.early_stopping ends it",
    "lightning": "give its keywords as +trainer.<keyword>=<value>",
    "logger": "choose loggers with logger=csv, logger=tensorboard or logger=wandb",
    "callbacks": "add one with +callbacks.<name>._target_=<class>",
    "plugins": "a run sets its own checkpoint plugin",
    "default_root_dir": "use run_dir=<folder>, or runs_dir",
    "enable_checkpointing": "checkpoints make a run resumable; see callbacks.checkpoints",
    "enable_progress_bar": "leave the progress bar out with callbacks.progress=null",
    "use_distributed_sampler": "the sampler of a run divides windows among devices itself",
    "reload_dataloaders_every_n_epochs": "a run has one endless epoch",
    "barebones": "it would leave out checkpoints",
    "enable_autolog_hparams": "loggers always receive the configuration",
    "limit_test_batches": "a run has no test split",
    "limit_predict_batches": "a run does not predict",
}


OPTIONAL_NODES = {  # group -> nodes that an option of it may leave out, while an experiment has settings for them
    "callbacks": ("metrics", "progress", "samples", "early_stopping", "guard", "checkpoints", "stories"),
    "logger": ("wandb", "tensorboard"),
}
GENERATION = {  # key of generate.py -> its names elsewhere
    "max_new_tokens": "max_tokens max_length length n_tokens",
    "num_samples": "num_return_sequences n best_of",
    "temperature": "temp t",
    "ckpt": "model model_path checkpoint run run_dir path init_from",
    "prompt": "start text input",
    "interactive": "chat",
    "greedy": "do_sample no_sample",
    "ui": "web gradio page",
    "serve": "server api openai",
    "stop_at_eos": "stop stop_words stop_strings ignore_eos",
}
SYNONYMS, GENERATION_SYNONYMS = (
    {name: key for key, names in names_of.items() for name in names.split()} for names_of in (NAMES, GENERATION)
)


def hint_for(key: str, known: Sequence[str]) -> str:
    """'; did you mean ...?' for a key that does not exist: by a synonym, an equal last part, or a similar spelling."""
    last, first = key.rpartition(".")[2], key.partition(".")[0]
    equal = [name for name in known if name.rpartition(".")[2] == last and name != key]
    synonyms = GENERATION_SYNONYMS if "prompts_file" in known else SYNONYMS
    for part in (last, first):
        if part in synonyms and synonyms[part] != key:
            return f"; did you mean {synonyms[part]}?"
    return f"; did you mean {equal[0]}?" if equal else did_you_mean(key, known, cutoff=0.8)


def hint_for_word(word: str, before: str | None, known: Sequence[str], names: Mapping[str, str]) -> str:
    """A hint for a word that is not key=value: an option with hyphens, its value, or a key alone. `names`: synonyms."""
    flag = before if before and before.startswith("--") and not word.startswith("-") else word
    key = flag.lstrip("-").partition("=")[0].replace("-", "_")
    key = names.get(key, key if key in known and flag.startswith("-") else "").partition(" ")[0]
    return f"; did you mean {key if '=' in key else f'{key}=...'}?" if key else ""


def hint_for_option(group: str, option: str, options: Sequence[str]) -> str:
    """A hint for an option that does not exist: by spelling, a node of that name, a synonym, or a word of its name."""
    if hint := did_you_mean(option, options, cutoff=0.7):
        return hint
    if option in OPTIONAL_NODES.get(group, ()):
        return f"; {group}.{option} is a part of {group}=default"
    words = set(option.lower().split("_"))
    named = [key for key, names in OPTIONS.items() if key.startswith(f"{group}=") and words & set(names.split())]
    shared = {name: len(words & set(name.split("_"))) for name in options}
    best = max(options, key=lambda name: (shared[name], -len(name)))
    if shared[best] or named:
        return f"; did you mean {best if shared[best] else named[0].partition('=')[2]}?"
    return ""
