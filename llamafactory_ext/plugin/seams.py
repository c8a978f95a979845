"""What the plugin adds to LLaMA-Factory, and where.

``SEAMS`` is the whole list. The first entries are LLaMA-Factory's public registries. The others wrap a function or a
class that is not public, each for the reason given with it; they are checked on the versions in ``versions``, and a
test compares upstream's source with what was checked. Nothing else of LLaMA-Factory is touched, and nothing at all
where the fork has the same feature already.

A seam is put in place when its module has been imported, at once where it was before. One that does not fit, whatever
the reason, does not stop a run that has no use for it; a run that has stops with the seam's name and both versions.

Of transformers, public classes are subclassed; three uses go beyond what is documented: the model overrides
``GenerationMixin._expand_inputs_for_generation``, as transformers' own multimodal models do, since series are not one
a row; ``training.trainers`` extends ``Trainer._save_rng_state``, after which ``trainer_state.json`` may be written;
and ``training.encoder`` calls ``Trainer.get_decay_parameter_names`` without a Trainer, to decay what it decays.
Of torch, ``model.host_embedding`` overrides ``Module._apply`` and calls DistributedDataParallel's
``_set_params_and_buffers_to_ignore_for_model``, which torch documents for this use; ``training.resuming`` names a
place to ``torch.load`` by ``torch.serialization.register_package``, where a run of ours resumes with several processes
on a CPU; ``activation`` sets a variable that torchrun reads, where the command line tells of a run of ours.
What they lean on is watched like the seams, a version each: ``LEANINGS`` in ``tests/upstream.py``.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Seam:
    """One place where the plugin meets LLaMA-Factory.

    ``target``: upstream's ``module:attribute``. ``installer``: our ``module:function``, called with upstream's module
    once the attribute is there and takes ``parameters`` (its first ones, in order). The function returns what it did,
    or None where upstream has the feature already. ``runs``: those that it changes; any other one passes through to
    upstream's own code. ``on_fork``: whether the fork lacks it too.
    """

    target: str
    installer: str
    reason: str
    runs: str
    parameters: tuple[str, ...] = ()
    public: bool = False
    on_fork: bool = False

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def attribute(self) -> str:
        return self.target.partition(":")[2]

    @property
    def own_module(self) -> str:
        return self.installer.partition(":")[0]


# Runs that a seam changes, in the words of the status and of docs/effects.md. A run of ours: ``relevance.is_ours``.
_OURS = "template chatts or a ChatTS checkpoint"
_TEMPLATE = "template chatts"
_CHECKPOINT = "ChatTS checkpoints"
_WHY_LASTING = "SIGTERM saves a checkpoint and ends unfinished; whole checkpoints; rotation by step; a step is left"
_ENTRIES = "entries with formatting of this package or a column timeseries"


SEAMS: tuple[Seam, ...] = (
    Seam(
        "llamafactory.data.converter:register_dataset_converter",
        "llamafactory_ext.data.converter:install",
        "the data formats of this package",
        _ENTRIES,
        ("name", "dataset_converter"),
        public=True,
        on_fork=True,
    ),
    Seam(
        "llamafactory.data.mm_plugin:register_mm_plugin",
        "llamafactory_ext.data.template:install_plugin",
        "mm-plugin `chatts`: a marker to its text and patches, series to tensors",
        _TEMPLATE,
        ("name", "plugin_class"),
        public=True,
    ),
    Seam(
        "llamafactory.data.template:register_template",
        "llamafactory_ext.data.template:install_template",
        "template `chatts`",
        _TEMPLATE,
        ("name",),
        public=True,
    ),
    Seam(
        "llamafactory.data.parser:DatasetAttr.join",
        "llamafactory_ext.data.entries:install",
        "`columns` of dataset_info.json are a fixed list upstream; `timeseries` is one more, and implies the format",
        _ENTRIES,
        ("self", "attr"),
        on_fork=True,
    ),
    Seam(
        "llamafactory.data.loader:_load_single_dataset",
        "llamafactory_ext.data.loading:install",
        "annotations mix types in one column, which Arrow refuses; and all faults of a file belong in one message",
        f"{_ENTRIES}; streams with template chatts",
        ("dataset_attr", "model_args", "data_args", "training_args"),
        on_fork=True,
    ),
    Seam(
        "llamafactory.data.loader:_get_preprocessed_dataset",
        "llamafactory_ext.data.fit:install",
        "upstream cuts a record that is too long, silently, in the middle of a series or of an answer's JSON",
        _TEMPLATE,
        ("dataset", "data_args", "training_args", "stage", "template", "tokenizer", "processor", "is_eval"),
    ),
    Seam(
        "llamafactory.hparams.parser:_TRAIN_ARGS",
        "llamafactory_ext.training.arguments:install",
        "the argument classes are a fixed list; unknown YAML keys are refused",
        f"{_OURS}; others get upstream's classes back",
    ),
    Seam(
        "llamafactory.hparams.parser:_parse_train_args",
        "llamafactory_ext.training.runs:install_train",
        "where all arguments are known, and nothing has been looked for, loaded or written: whether a run is ours is "
        "decided here, and what it can't do is refused",
        f"none is changed; {_OURS}: refused where it can't go well",
        ("args",),
        on_fork=True,
    ),
    Seam(
        "llamafactory.hparams.parser:_parse_infer_args",
        "llamafactory_ext.training.runs:install_infer",
        "the same for chat, API and export",
        f"none is changed; {_OURS}: refused where it can't go well",
        ("args",),
    ),
    Seam(
        "llamafactory.hparams.parser:_verify_model_args",
        "llamafactory_ext.training.opening:install_parsed_trust",
        "the web UI always asks for `trust_remote_code`, and a checkpoint need not say that it is one of ChatTS",
        _TEMPLATE,
        ("model_args", "data_args", "finetuning_args"),
    ),
    Seam(
        "llamafactory.hparams.parser:get_last_checkpoint",
        "llamafactory_ext.training.resuming:install",
        "upstream resumes from the highest number, though the run was killed while that checkpoint was written",
        _OURS,
        on_fork=True,
    ),
    Seam(
        "llamafactory.model.loader:_get_init_kwargs",
        "llamafactory_ext.training.opening:install_trust",
        "the web UI always asks for `trust_remote_code`; the code of a ChatTS checkpoint would run with its tokenizer",
        _CHECKPOINT,
        ("model_args",),
    ),
    Seam(
        "llamafactory.model.loader:load_config",
        "llamafactory_ext.training.opening:install_config",
        "a ChatTS checkpoint may call itself `qwen2`; transformers would then drop its encoder with a warning only; "
        "and parts that stay in CPU memory are named in it, so that they are never read onto the card",
        _CHECKPOINT,
        ("model_args",),
    ),
    Seam(
        "llamafactory.model.loader:AutoProcessor",
        "llamafactory_ext.training.opening:install_processor",
        "transformers refuses a processor that is remote code with a ValueError which upstream does not catch",
        _CHECKPOINT,
    ),
    Seam(
        "llamafactory.model.adapter:patch_target_modules",
        "llamafactory_ext.training.encoder:install_targets",
        "LoRA on the encoder's linear layers, whose names are digits and match nothing of `lora_target`",
        _CHECKPOINT,
        ("model", "finetuning_args", "target_modules"),
    ),
    Seam(
        "llamafactory.model.adapter:get_forbidden_modules",
        "llamafactory_ext.training.encoder:install_freezing",
        "`train_timeseries_modules: false` in full and freeze tuning",
        _CHECKPOINT,
        ("config", "finetuning_args"),
    ),
    Seam(
        "llamafactory.model.loader:init_adapter",
        "llamafactory_ext.training.levers:install",
        "memory and precision are settled when the model is loaded and no adapter, DDP or Trainer holds its parts yet",
        _CHECKPOINT,
        ("config", "model", "model_args", "finetuning_args", "is_trainable"),
    ),
    Seam(
        "llamafactory.train.sft.trainer:create_custom_optimizer",
        "llamafactory_ext.training.encoder:install_optimizer",
        "`timeseries_sft_lr`: a parameter group of its own",
        "`timeseries_sft_lr` is set",
        ("model", "training_args", "finetuning_args"),
    ),
    Seam(
        "llamafactory.train.sft.workflow:CustomSeq2SeqTrainer",
        "llamafactory_ext.training.trainers:install_sft",
        "`event_f1_steps` needs the Trainer's data and log; ROUGE of long answers takes hours before predictions are "
        "written; the tokenizer is saved last, in a form that published loaders can't open",
        _OURS,
    ),
    Seam(
        "llamafactory.train.kto.workflow:CustomKTOTrainer",
        "llamafactory_ext.training.trainers:install_kto",
        "its forward pass picks the model's inputs by name, and `timeseries` is none of them",
        _OURS,
    ),
    Seam(
        "llamafactory.train.dpo.trainer:CustomDPOTrainer",
        "llamafactory_ext.training.trainers:install_dpo",
        _WHY_LASTING,
        _OURS,
    ),
    Seam(
        "llamafactory.train.rm.workflow:PairwiseTrainer",
        "llamafactory_ext.training.trainers:install_rm",
        f"{_WHY_LASTING}; and its checkpoints can't be resumed from, which is said",
        _OURS,
    ),
    Seam(
        "llamafactory.train.pt.workflow:CustomTrainer",
        "llamafactory_ext.training.trainers:install_pt",
        _WHY_LASTING,
        _OURS,
    ),
    Seam(
        "llamafactory.launcher:launch",
        "llamafactory_ext.plugin.launching:install",
        "arguments are joined for torchrun and split at blanks, those in paths too; SIGTERM is not handed on to it",
        f"{_OURS}, started with torchrun",
    ),
    Seam(
        "llamafactory.api.app:create_app",
        "llamafactory_ext.serving.api:install_app",
        "audio is sound or an address; what is wrong ends in a 500, or in a stream that waits for ever; any web page "
        "may ask; bodies of any size are read, before the key; a client that leaves is answered to the end; Python's "
        "collector holds all requests while it looks through what is imported (`gc.freeze` leaves that out)",
        _TEMPLATE,
        ("chat_model",),
    ),
    Seam(
        "llamafactory.chat.chat_model:run_chat",
        "llamafactory_ext.serving.terminal:install",
        "the terminal's loop takes text only",
        _TEMPLATE,
    ),
)
