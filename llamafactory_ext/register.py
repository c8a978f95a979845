"""What the plugin adds to LLaMA-Factory, and where.

``SEAMS`` is the whole list. The first entries are LLaMA-Factory's public registries. The others wrap a function or a
class that is not public, each for the reason given with it; they are checked on the versions in ``installed``, and a
test compares upstream's source with what was checked. Nothing else of LLaMA-Factory is touched, and nothing at all
where the fork has the same feature already.

A seam is put in place when its module has been imported, at once where it was before. One that does not fit, whatever
the reason, does not stop a run that has no use for it; a run that has stops with the seam's name and both versions.

Of transformers, public classes are subclassed; three uses go beyond what is documented: the model overrides
``GenerationMixin._expand_inputs_for_generation``, as transformers' own multimodal models do, since series are not one
a row; ``training.sft_trainer`` extends ``Trainer._save_rng_state``, after which ``trainer_state.json`` may be written;
and ``training.encoder`` calls ``Trainer.get_decay_parameter_names`` without a Trainer, to decay what it decays.
Of torch, ``model.host_embedding`` overrides ``Module._apply`` and calls DistributedDataParallel's
``_set_params_and_buffers_to_ignore_for_model``, which torch documents for this use; ``training.resuming`` names a
place to ``torch.load`` by ``torch.serialization.register_package``; ``restarts`` sets a variable that torchrun reads.
What they lean on is watched like the seams, a version each: ``LEANINGS`` in ``tests/upstream.py``.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from llamafactory_ext.hook import AfterImport, is_gone, is_importing
from llamafactory_ext.installed import CHECKED, on_fork, too_old, versions
from llamafactory_ext.restarts import prepare_restarts


@dataclass(frozen=True)
class Seam:
    """One place where the plugin meets LLaMA-Factory.

    ``target``: upstream's ``module:attribute``. ``installer``: our ``module:function``, called with upstream's module
    once the attribute is there and takes ``parameters`` (its first ones, in order). The function returns what it did,
    or None where upstream has the feature already. ``on_fork``: whether the fork lacks it too.
    """

    target: str
    installer: str
    reason: str
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


SEAMS: tuple[Seam, ...] = (
    Seam(
        "llamafactory.data.converter:register_dataset_converter",
        "llamafactory_ext.converter:install",
        "data formats `gdsh` and `chatts`",
        ("name", "dataset_converter"),
        public=True,
        on_fork=True,
    ),
    Seam(
        "llamafactory.data.mm_plugin:register_mm_plugin",
        "llamafactory_ext.mm_plugin:install",
        "mm-plugin `chatts`: a marker to its text and patches, series to tensors",
        ("name", "plugin_class"),
        public=True,
    ),
    Seam(
        "llamafactory.data.template:register_template",
        "llamafactory_ext.template:install",
        "template `chatts`",
        ("name",),
        public=True,
    ),
    Seam(
        "llamafactory.data.parser:DatasetAttr.join",
        "llamafactory_ext.dataset_entry:install",
        "`columns` of dataset_info.json are a fixed list upstream; `timeseries` is one more, and implies the format",
        ("self", "attr"),
        on_fork=True,
    ),
    Seam(
        "llamafactory.data.loader:_load_single_dataset",
        "llamafactory_ext.loading:install",
        "annotations mix types in one column, which Arrow refuses; and all faults of a file belong in one message",
        ("dataset_attr", "model_args", "data_args", "training_args"),
        on_fork=True,
    ),
    Seam(
        "llamafactory.data.loader:_get_preprocessed_dataset",
        "llamafactory_ext.overlong:install",
        "upstream cuts a record that is too long, silently, in the middle of a series or of an answer's JSON",
        ("dataset", "data_args", "training_args", "stage", "template", "tokenizer", "processor", "is_eval"),
    ),
    Seam(
        "llamafactory.hparams.parser:_TRAIN_ARGS",
        "llamafactory_ext.arguments:install",
        "the argument classes are a fixed list; unknown YAML keys are refused",
    ),
    Seam(
        "llamafactory.hparams.parser:get_last_checkpoint",
        "llamafactory_ext.training.resuming:install",
        "upstream goes on from the highest number, though the run was killed while that checkpoint was written",
        on_fork=True,
    ),
    Seam(
        "llamafactory.model.loader:_get_init_kwargs",
        "llamafactory_ext.checkpoint:install_trust",
        "the web UI always asks for `trust_remote_code`; the code of a ChatTS checkpoint would run with its tokenizer",
        ("model_args",),
    ),
    Seam(
        "llamafactory.model.loader:load_config",
        "llamafactory_ext.checkpoint:install_config",
        "a ChatTS checkpoint may call itself `qwen2`; transformers would then drop its encoder with a warning only",
        ("model_args",),
    ),
    Seam(
        "llamafactory.model.loader:AutoProcessor",
        "llamafactory_ext.checkpoint:install_processor",
        "transformers refuses a processor that is remote code with a ValueError which upstream does not catch",
    ),
    Seam(
        "llamafactory.model.adapter:patch_target_modules",
        "llamafactory_ext.training.encoder:install_targets",
        "LoRA on the encoder's linear layers, whose names are digits and match nothing of `lora_target`",
        ("model", "finetuning_args", "target_modules"),
    ),
    Seam(
        "llamafactory.model.adapter:get_forbidden_modules",
        "llamafactory_ext.training.encoder:install_freezing",
        "`train_timeseries_modules: false` in full and freeze tuning",
        ("config", "finetuning_args"),
    ),
    Seam(
        "llamafactory.model.loader:init_adapter",
        "llamafactory_ext.training.levers:install",
        "memory and precision are settled when the model is loaded and no adapter, DDP or Trainer holds its parts yet",
        ("config", "model", "model_args", "finetuning_args", "is_trainable"),
    ),
    Seam(
        "llamafactory.train.sft.trainer:create_custom_optimizer",
        "llamafactory_ext.training.encoder:install_optimizer",
        "`timeseries_sft_lr`: a parameter group of its own",
        ("model", "training_args", "finetuning_args"),
    ),
    Seam(
        "llamafactory.train.sft.workflow:CustomSeq2SeqTrainer",
        "llamafactory_ext.training.sft_trainer:install",
        "`event_f1_steps` needs the Trainer's data and log; ROUGE of long answers takes hours before predictions are "
        "written; the tokenizer is saved last, in a form that published loaders can't open",
    ),
    Seam(
        "llamafactory.train.kto.workflow:CustomKTOTrainer",
        "llamafactory_ext.training.stages:install_kto",
        "its forward pass picks the model's inputs by name, and `timeseries` is none of them",
    ),
    Seam(
        "llamafactory.api.app:create_app",
        "llamafactory_ext.serving.api:install_app",
        "bodies of any size are read; faults of their shape are told with the body itself, or end in a 500",
        ("chat_model",),
    ),
    Seam(
        "llamafactory.api.app:create_chat_completion_response",
        "llamafactory_ext.serving.api:install_answers",
        "upstream reads audio from sound files and addresses; a series that is wrong would end in a 500",
        ("request", "chat_model"),
    ),
    Seam(
        "llamafactory.api.app:create_stream_chat_completion_response",
        "llamafactory_ext.serving.api:install_streams",
        "the same in streams, where a fault came after the 200, or left the server waiting for ever",
        ("request", "chat_model"),
    ),
    Seam(
        "llamafactory.chat.chat_model:run_chat",
        "llamafactory_ext.serving.terminal:install",
        "the terminal's loop takes text only",
    ),
)


WAITING = "waiting for its module"

_states: dict[str, str] = {}
_failures: dict[str, str] = {}


class SeamError(RuntimeError):
    """LLaMA-Factory does not have a seam as it is expected."""


def activate() -> AfterImport:
    """Puts every seam in place: now for modules that are imported, else right after their import. Idempotent.

    Raises:
        SeamError: a seam can't be put in place, or the versions are too old, and the command line tells that this run
            needs the plugin.
    """
    old = too_old()
    if old and _is_needed():
        raise SeamError(old)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        prepare_restarts()
    _install_waiting()
    for seam in SEAMS:
        if seam.target not in _states and seam.module not in sys.modules and is_gone(seam.module):
            _fail(seam, f"there is no module {seam.module}")
    return _finder


def states() -> dict[str, str]:
    """Returns the state of each seam by its target."""
    return {seam.target: _states.get(seam.target, WAITING) for seam in SEAMS}


def failures() -> dict[str, str]:
    """Returns what is wrong, by target; empty where everything fits."""
    return dict(_failures)


def require() -> None:
    """Called wherever a run turns out to need the plugin.

    Raises:
        SeamError: a seam could not be put in place.
    """
    if _failures:
        raise SeamError(_message())


def _message() -> str:
    lines = [f"  {target}: {why}" for target, why in _failures.items()]
    known = " or ".join(CHECKED["llamafactory"])
    return (
        f"{versions()}: LLaMA-Factory is not as this plugin expects it.\n"
        + "\n".join(lines)
        + f"\nInstall llamafactory {known}, or a llamafactory_ext made for this version. "
        "LLAMAFACTORY_EXT=0 switches the plugin off."
    )


def _install_waiting() -> None:
    for seam in SEAMS:
        if seam.module in sys.modules and not is_importing(sys.modules[seam.module]):
            _install(seam)


def _install(seam: Seam) -> None:
    if seam.target in _states or any(_is_half_imported(other) for other in SEAMS):
        return
    if on_fork() and not seam.on_fork:
        _states[seam.target] = "left alone: the fork has its own"
        return
    upstream = sys.modules[seam.module]
    misfit = _misfit(seam, upstream)
    if misfit:
        _fail(seam, misfit)
        return
    _states[seam.target] = "being put in place"  # installing may import modules that have seams themselves
    try:
        installer: Callable[[ModuleType], str | None] = getattr(
            importlib.import_module(seam.own_module), seam.installer.partition(":")[2]
        )
        _states[seam.target] = installer(upstream) or "left alone: LLaMA-Factory has it already"
    except SeamError:
        raise
    except Exception as err:  # an unknown version can differ in any way, and must not stop a run that needs nothing
        _fail(seam, f"{seam.installer} failed: {type(err).__name__}: {err}", err)


def _fail(seam: Seam, why: str, cause: Exception | None = None) -> None:
    _states[seam.target] = f"missing: {why}"
    _failures[seam.target] = why
    if _is_needed():
        raise SeamError(_message()) from cause


def _is_needed() -> bool:
    try:
        from llamafactory_ext.need import run_needs_plugin
    except ImportError:  # no PyYAML, or half an installation: :func:`require` is asked later on
        return False
    return run_needs_plugin(sys.argv)


def _misfit(seam: Seam, module: ModuleType) -> str | None:
    target: object = module
    for name in seam.attribute.split("."):
        if not hasattr(target, name):
            return f"`{seam.attribute}` is gone from {seam.module}"
        target = getattr(target, name)
    if seam.parameters and callable(target):
        found = tuple(inspect.signature(target).parameters)
        if found[: len(seam.parameters)] != seam.parameters:
            return f"takes ({', '.join(found)}), expected ({', '.join(seam.parameters)}, …)"
    return None


def _is_half_imported(seam: Seam) -> bool:
    """True where our module was imported first and is just importing upstream's: all seams wait until it has run."""
    own = sys.modules.get(seam.own_module)
    return own is not None and seam.target not in _states and not hasattr(own, seam.installer.partition(":")[2])


def _has_waiting_seam(module: str) -> bool:
    return any(module in (seam.module, seam.own_module) and seam.target not in _states for seam in SEAMS)


def _after_import(module: ModuleType) -> None:
    for seam in SEAMS:
        if seam.module == module.__name__:  # counts as being imported until this returns
            _install(seam)
    _install_waiting()


_finder = AfterImport(_has_waiting_seam, _after_import)
