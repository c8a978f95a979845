"""Opens ChatTS checkpoints natively: config and processor. ``trust_remote_code`` is false for them, whatever is asked.

So it is wherever the template is ``chatts``, whatever the checkpoint says: it comes from anywhere, and may leave out
what it would be known by. Wraps ``_verify_model_args`` of ``llamafactory.hparams.parser``, through which all arguments
go, and ``_get_init_kwargs``, ``load_config`` and ``AutoProcessor`` of ``llamafactory.model.loader``; from the config
on, transformers' own ``AutoModelForCausalLM`` finds the model by its registered class.
"""

import functools
from typing import Any

from llamafactory.extras import logging

from llamafactory_ext.model import ChatTSProcessor, read_config
from llamafactory_ext.model.adapters import check_adapter
from llamafactory_ext.model.placement import EMBEDDING, HEAD
from llamafactory_ext.model.weights import check_weights
from llamafactory_ext.plugin.activation import require
from llamafactory_ext.plugin.relevance import is_other_run, is_our_run, this_run
from llamafactory_ext.training.runs import wrong_template


logger = logging.get_logger("llamafactory.ext")


def install_parsed_trust(upstream: Any) -> str | None:
    """Wraps ``_verify_model_args``: with template ``chatts`` the parsed arguments trust no code of a checkpoint."""
    verify = upstream._verify_model_args

    @functools.wraps(verify)
    def verify_without_trust(model_args: Any, data_args: Any, finetuning_args: Any) -> None:
        if data_args.template == "chatts" and model_args.trust_remote_code:
            _say_aside()
            model_args.trust_remote_code = False
        verify(model_args, data_args, finetuning_args)

    upstream._verify_model_args = verify_without_trust
    return "wrapped"


def _say_aside() -> None:
    logger.warning_rank0_once(
        "trust_remote_code is ignored: this checkpoint is opened without the code that came with it."
    )


def install_trust(upstream: Any) -> str | None:
    """Wraps ``_get_init_kwargs``, with which tokenizer, processor, config and model are loaded."""
    get_init_kwargs = upstream._get_init_kwargs

    @functools.wraps(get_init_kwargs)
    def get_native_kwargs(model_args: Any) -> dict[str, Any]:
        kwargs: dict[str, Any] = get_init_kwargs(model_args)
        # The path is read now: upstream may just have replaced it by that of a download.
        if kwargs["trust_remote_code"] and read_config(model_args.model_name_or_path, **kwargs) is not None:
            _say_aside()
            kwargs["trust_remote_code"] = False
        return kwargs

    upstream._get_init_kwargs = get_native_kwargs
    return "wrapped"


def install_config(upstream: Any) -> str | None:
    """Wraps ``load_config``."""
    load_config = upstream.load_config

    @functools.wraps(load_config)
    def load_native_config(model_args: Any) -> Any:
        hub = {"cache_dir": model_args.cache_dir, "revision": model_args.model_revision}
        hub["token"] = model_args.hf_hub_token
        config = read_config(model_args.model_name_or_path, **hub)
        if config is None:
            return load_config(model_args)
        require()
        if is_other_run(model_args):  # a download, whose config was not there when the run became known
            raise ValueError(wrong_template(model_args.model_name_or_path))
        for adapter in model_args.adapter_name_or_path or ():
            check_adapter(adapter, model_args.adapter_folder or "", **hub)
        if not model_args.train_from_scratch:
            check_weights(config, model_args.model_name_or_path, **hub)
        config.on_cpu = _parts_on_cpu(model_args, config)
        return config

    upstream.load_config = load_native_config
    return "wrapped"


def _parts_on_cpu(model_args: Any, config: Any) -> tuple[str, ...]:
    """Returns the parts that the run wants in CPU memory, which need never be read onto the card."""
    if not is_our_run(model_args) or config.tie_word_embeddings:
        return ()
    parts = {"embedding_on_cpu": EMBEDDING, "stream_head": HEAD}
    return tuple(part for key, part in parts.items() if any(getattr(one, key, False) for one in this_run()))


def install_processor(upstream: Any) -> str | None:
    """Puts a class in place of ``AutoProcessor`` that asks the config first."""

    class AutoProcessor(upstream.AutoProcessor):  # type: ignore[misc]
        @classmethod
        def from_pretrained(cls, path: str, **kwargs: Any) -> Any:
            config = read_config(path, **kwargs)
            if config is None:
                return super().from_pretrained(path, **kwargs)
            return ChatTSProcessor(config)  # upstream sets the tokenizer right after

    upstream.AutoProcessor = AutoProcessor
    return "wrapped"
