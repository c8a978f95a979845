"""Configs of both ChatTS families, and how a checkpoint is recognised.

A published checkpoint is known by the ``ts`` section of its ``config.json``; its ``model_type`` may be that of the
plain language model. What it names for loading with its own Python files (``model_type``, ``auto_map``) is kept aside
and written back on saving, so that the published loaders still open an exported checkpoint; while loaded, the config
has neither, so that nothing that came with a download is executed, and nothing takes the model for a plain Qwen.

Checked with transformers 4.57.6 and 5.6.0.
"""

from typing import Any

from transformers import PretrainedConfig, Qwen2Config, Qwen3Config
from transformers.utils import logging

from .limits import check_config


_PUT_ASIDE = ("model_type", "auto_map")


class ChatTSConfigMixin:
    """The keys that ChatTS adds to a language model's config.

    ``ts``: the encoder's section; ``ts_token_start_index`` / ``ts_token_end_index``: ids of ``<ts>`` and ``<ts/>``.
    """

    use_cache: bool
    ts = None
    ts_token_start_index = None
    ts_token_end_index = None
    published: dict[str, Any] | None = None
    on_cpu: tuple[str, ...] = ()
    """Parts that ``from_pretrained`` reads into CPU memory; said by whoever loads the model, and never saved."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds the config; ``model_type`` and ``auto_map`` are put aside in ``published``."""
        config_dict = dict(config_dict)
        check_config(config_dict)
        published = {key: config_dict.pop(key) for key in _PUT_ASIDE if key in config_dict}
        if "use_cache" in config_dict:
            published["use_cache"] = config_dict["use_cache"]
        loaded: Any = super().from_dict(config_dict, **kwargs)  # type: ignore[misc]
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config.published = published
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """Returns the published form: own ``model_type`` and ``auto_map``, and keys that older loaders read."""
        output: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        output.pop("on_cpu", None)
        published = output.pop("published", None) or {}
        output.update({key: published[key] for key in _PUT_ASIDE if key in published})
        name_as_before(output)
        return output

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As upstream's, with the published ``use_cache``: LLaMA-Factory sets its own, with which the published files
        of ChatTS-14B fail (transformers 4.57.6)."""
        used, self.use_cache = self.use_cache, (self.published or {}).get("use_cache", self.use_cache)
        try:
            super().save_pretrained(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.use_cache = used


def name_as_before(config: dict[str, Any]) -> None:
    """Adds the keys that loaders before transformers 5 read, which writes ``rope_parameters`` and ``dtype`` only.

    The published ones take a `rope_theta` of 10000 where it is missing, which changes every position.
    """
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    if rope.get("rope_type", "default") != "default" and config.get("rope_scaling") is None:
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if config.get("dtype") is not None:
        config.setdefault("torch_dtype", config["dtype"])


class Qwen2TSConfig(ChatTSConfigMixin, Qwen2Config):  # type: ignore[misc]
    """ChatTS over Qwen2 and Qwen2.5 (ChatTS-14B)."""

    model_type = "chatts"


class Qwen3TSConfig(ChatTSConfigMixin, Qwen3Config):  # type: ignore[misc]
    """ChatTS over Qwen3 (ChatTS-8B)."""

    model_type = "qwen3ts"


def is_chatts(config: Any) -> bool:
    """True for a config (or a model's config) of one of the native families."""
    return isinstance(config, ChatTSConfigMixin)


def read_config(path: str, **kwargs: Any) -> Qwen2TSConfig | Qwen3TSConfig | None:
    """Returns the native config of a checkpoint, or None where it has no ``config.json`` with a ``ts`` section.

    Arguments:
        path: folder or hub name, as ``AutoConfig.from_pretrained`` takes it.
        kwargs: ``cache_dir``, ``revision``, ``token``; other keys are ignored.

    Raises:
        ValueError: a size, or a name, that no model should be built of.
    """
    hub = {key: kwargs[key] for key in ("cache_dir", "revision", "token") if kwargs.get(key) is not None}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # any checkpoint is asked, and whoever loads it logs this again
    try:
        config_dict, _ = PretrainedConfig.get_config_dict(path, **hub)
    except OSError:  # no such checkpoint: whoever loads it says so better
        return None
    finally:
        logging.set_verbosity(verbosity)
    if not isinstance(config_dict.get("ts"), dict):
        return None
    check_config(config_dict, f"{path}/config.json")
    names = " ".join([*(config_dict.get("architectures") or []), str(config_dict.get("model_type"))]).lower()
    if "qwen3" in names:
        family: Any = Qwen3TSConfig
    elif "qwen2" in names or "chatts" in names:
        family = Qwen2TSConfig
    else:
        raise ValueError(
            f"{path} has a `ts` section over a language model that is not known ({names}); expected qwen2 or qwen3."
        )
    config: Qwen2TSConfig | Qwen3TSConfig = family.from_dict(config_dict)
    config.name_or_path = path
    return config
