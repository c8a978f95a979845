"""ChatTS on a stock vLLM, by its entry point ``vllm.general_plugins``: no fork, no remote code.

Public registries of vLLM: of models, of media connectors, of renderers (``HfRenderer``'s place is taken by one that
adds a look at prompts of our models). One seam: ``LoRAModel.from_local_checkpoint`` is wrapped, to say what to do with
an adapter on the encoder. Checked with vLLM 0.32.0.
"""

CONNECTOR = "chatts"


def register() -> None:
    """Registers both families; vLLM calls it in each of its processes, and may call it again."""
    from vllm import ModelRegistry
    from vllm.renderers.registry import RENDERER_REGISTRY

    import llamafactory_ext.model  # noqa: F401  registers the configs

    from . import adapters, requests  # noqa: F401  registers the connector

    for family in ("Qwen2TSForCausalLM", "Qwen3TSForCausalLM"):
        if family not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(family, f"{__name__}.models:{family}")
    RENDERER_REGISTRY.renderers["hf"] = (f"{__name__}.requests", "SeriesRenderer")
    adapters.install()
