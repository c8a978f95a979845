"""What a server is sent: series out of data URIs and files, and prompts whose markers stand for nothing.

The rules for sources are those of our API: nothing is fetched, files lie under one folder.
"""

import asyncio
import os
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.renderers.hf import HfRenderer

from llamafactory_ext.series import MARKER, FloatArray
from llamafactory_ext.serving.sources import SourceError, read_source

from . import CONNECTOR
from .processing import refusal


_SETTING = "--allowed-local-media-path"


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
class SeriesConnector(MediaConnector):  # type: ignore[misc]
    """Reads series where vLLM reads audio; nothing else is opened, and nothing is fetched."""

    def fetch_audio(self, audio_url: str) -> FloatArray:
        name = url2pathname(urlsplit(audio_url).path) if audio_url[:8].lower() == "file:///" else audio_url
        try:
            return read_source(name, self.allowed_local_media_path, _SETTING).values
        except SourceError as err:
            raise refusal(str(err)) from err

    async def fetch_audio_async(self, audio_url: str) -> FloatArray:
        return await asyncio.to_thread(self.fetch_audio, audio_url)

    def load_from_url(self, url: str, *args: Any, **kwargs: Any) -> Any:
        raise refusal("found an image or a video; expected audio_url with a series")

    async def load_from_url_async(self, url: str, *args: Any, **kwargs: Any) -> Any:
        return self.load_from_url(url)


class SeriesRenderer(HfRenderer):  # type: ignore[misc]
    """Refuses a marker without a series, with which vLLM asks no processor. For other models, vLLM's own."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        section = getattr(config.model_config.hf_config, "ts", None)
        self._reads_series = isinstance(section, dict)
        if self._reads_series:
            os.environ.setdefault("VLLM_MEDIA_CONNECTOR", CONNECTOR)
        super().__init__(config, *args, **kwargs)

    def process_for_engine(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        self._refuse_markers_alone(prompt)
        return super().process_for_engine(prompt, *args, **kwargs)

    async def process_for_engine_async(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        self._refuse_markers_alone(prompt)
        return await super().process_for_engine_async(prompt, *args, **kwargs)

    def _refuse_markers_alone(self, prompt: Any) -> None:
        if not self._reads_series or prompt.get("multi_modal_data"):
            return
        config = self.model_config.hf_config
        if {config.ts_token_start_index, config.ts_token_end_index} & set(prompt.get("prompt_token_ids") or ()):
            raise refusal(f"found {MARKER} and no series; expected one series for each marker, as audio_url")
