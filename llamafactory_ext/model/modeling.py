"""ChatTS over transformers' own Qwen2 and Qwen3.

The text stage has written one ``<ts>`` a patch, so sequence length, positions, padding, packing and generation are the
language model's ordinary business. What is added: the encoder's output overwrites the embeddings at ``<ts>``; no loss
is taken there; and in training the head runs only where a label is kept, which over a vocabulary of 150,000 saves more
memory than anything else in a step. So does the last layer's feed-forward part.

The class names are the published ones, so that a saved checkpoint names the same ``architectures``.
Checked with transformers 4.57.6, 5.5.4, 5.6.0 and 5.24.0.
"""

import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from transformers import BitsAndBytesConfig, LogitsProcessorList, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from . import placement
from .config import Qwen2TSConfig, Qwen3TSConfig
from .constrained import Grammars, rows_of_series
from .encoder import TimeSeriesEncoder
from .last_layer import read_rows_only
from .loss import summed_cross_entropy, summed_in_pieces
from .published import copy_published_files
from .streamed_head import StreamedHead


_IGNORED = -100
# What transformers calls the keys and values of earlier tokens: `past_key_values` before 5.24, `cache` from then on.
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
# bitsandbytes must leave these alone: the encoder is small and was never trained in 4 bit, the head picks each token.
_UNQUANTISED = ["ts_encoder", "lm_head"]


def _describe(what: str, hidden: torch.Tensor, weight: torch.Tensor, training: bool) -> str:
    """Returns what is known about a result that is not finite, and what to change."""
    where = "the head" if bool(hidden.isfinite().all()) else "the decoder's layers"
    half = torch.is_autocast_enabled(hidden.device.type) or weight.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.get_autocast_dtype(hidden.device.type) if half and weight.dtype == torch.float32 else weight.dtype
    if dtype == torch.float16:
        wider = "`bf16: true` instead of `fp16`" if training else "`infer_dtype: bfloat16`"
        advice = (
            f"float16 ends at 65504: set {wider} (Ampere and later), or "
            "`upcast_layernorm: true` with `quantization_bit: 4` and `flash_attn: sdpa` (yaml/2080ti_qlora_safe.yaml)"
        )
    else:
        lower = "lower `learning_rate`, and " if training else ""
        advice = f"{lower}check that the checkpoint's weights are finite and the series' too"
    return f"{what}; what is not finite comes out of {where}, in {dtype}. Stopped: {advice}."


class ChatTSMixin:
    """What both families share. Stands before the language model's class in the bases."""

    config: Any
    model: nn.Module
    lm_head: nn.Module
    returns_logits: bool | None = None
    """Whether whole logits come beside a loss: by default in evaluation only, where a metric may want them."""
    offload_checkpoints = False
    """Whether the inputs of checkpointed layers wait for the backward pass in CPU memory (reentrant ones only)."""
    grammars: Grammars | None = None
    """What answers about series are kept to; None leaves them free."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.ts_encoder = TimeSeriesEncoder(config.ts)
        read_rows_only(self.model.layers[-1])
        self.post_init()  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(cls, *args: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
        """As upstream's; a bitsandbytes config that skips nothing is told to skip the encoder and the head.

        The parts that ``config.on_cpu`` names are read into CPU memory.
        """
        if isinstance(quantization_config, BitsAndBytesConfig) and not quantization_config.llm_int8_skip_modules:
            quantization_config.llm_int8_skip_modules = list(_UNQUANTISED)
        if quantization_config is not None:
            kwargs["quantization_config"] = quantization_config
        read = functools.partial(super().from_pretrained, *args)  # type: ignore[misc]
        split = placement.split(kwargs.get("device_map"), getattr(kwargs.get("config"), "on_cpu", ()))
        return read(**kwargs) if split is None else placement.read_apart(read, **{**kwargs, "device_map": split})

    def generate(self, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """As upstream's; with ``grammars``, answers about series are JSON of anomalies within them.

        Raises:
            ValueError: beams, which go back and forth between answers.
        """
        ids, known = (inputs if inputs is not None else kwargs.get("input_ids")), generation_config or kwargs
        if self.grammars is None or ids is None or len(ids) == 0:
            return super().generate(inputs, generation_config, **kwargs)  # type: ignore[misc]

        def setting(name: str) -> int:
            return kwargs.get(name) or getattr(known, name, None) or 1

        if setting("num_beams") > 1:
            raise ValueError("`constrained_answers` does not go with `num_beams`; set it to 1")
        points = rows_of_series(self, ids, kwargs.get("timeseries"), setting("num_return_sequences"))
        if any(points):
            given = kwargs.pop("logits_processor", None) or []
            kwargs["logits_processor"] = LogitsProcessorList([*given, self.grammars.processor(points)])
        return super().generate(inputs, generation_config, **kwargs)  # type: ignore[misc]

    def load_custom_generate(self, *args: Any, **kwargs: Any) -> Any:
        """There is none: code that came with a checkpoint is not run; transformers 4.57 would run it without trust.

        Raises:
            OSError: always, which is upstream's word for "this checkpoint has none".
        """
        raise OSError("`custom_generate` is not supported: code that came with a checkpoint is not run")

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As upstream's; the files that the published ``auto_map`` names are copied along, for its loaders."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            copy_published_files(self.config, Path(save_directory))

    @property
    def device(self) -> torch.device:
        """The device that inputs are wanted on: the last norm's, since embedding and head may lie in CPU memory."""
        device: torch.device = self.model.norm.weight.device
        return device

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        timeseries: torch.FloatTensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the model.

        Arguments:
            past_key_values: keys and values of earlier tokens; ``cache`` is the same, as transformers 5.24 calls it.
            timeseries: all series of the batch in order, ``[series, 2 * longest, 1]``, scaled values and mask
                alternating; in ``input_ids`` there is one ``<ts>`` for each of their patches.
            labels: ``[batch, length]``, -100 where no loss is taken. Whether logits are returned beside the loss:
                see ``returns_logits``.

        Raises:
            ValueError: ``<ts>`` tokens and patches differ in number.
            FloatingPointError: the loss of a training step is not finite, or logits that the next token is chosen by.
        """
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, timeseries)
        wanted = not self.training if self.returns_logits is None else self.returns_logits  # type: ignore[attr-defined]
        kept = None if labels is None else self._kept(labels, input_ids)
        if kept is not None and not (wanted or kwargs.get("output_hidden_states", self.config.output_hidden_states)):
            rows, _ = kept
            kwargs["read_rows"] = rows if len(rows) else rows.new_zeros(1)
        with self._checkpoints_on_cpu(inputs_embeds.device):
            outputs = self.model(
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **{_CACHE: cache if past_key_values is None else past_key_values},
                **kwargs,
            )
        kwargs.pop("read_rows", None)
        hidden, held = outputs.last_hidden_state, getattr(outputs, _CACHE)
        loss = None if kept is None else self._loss(hidden, *kept, **kwargs)
        logits = None
        if labels is None or wanted:
            places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self._logits(hidden[:, places, :])
            if labels is None and held is not None:
                self._check_next_token(logits[:, -1], hidden[:, -1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{_CACHE: held},
        )

    def _embed(self, input_ids: torch.Tensor | None, timeseries: torch.Tensor | None) -> torch.Tensor:
        """Returns the token embeddings with those at ``<ts>`` overwritten, ``[batch, length, hidden_size]``."""
        if input_ids is None:
            raise ValueError("found neither input_ids nor inputs_embeds; expected one of them")
        embeds: torch.Tensor = self.get_input_embeddings()(input_ids)  # type: ignore[attr-defined]
        if timeseries is None or timeseries.numel() == 0:
            if input_ids.shape[1] > 1 and bool((input_ids == self.config.ts_token_start_index).any()):
                raise ValueError("input_ids hold <ts> tokens but no `timeseries` came with them; pass the series")
            return self._keep_encoder_in_step(embeds)
        markers = input_ids == self.config.ts_token_start_index
        patches, counts = self.ts_encoder(timeseries)
        if int(markers.sum()) != len(patches):
            raise ValueError(
                f"input_ids hold {int(markers.sum())} <ts> tokens, the {len(counts)} series have {len(patches)} "
                f"patches ({counts.tolist()[:8]}…); expected one <ts> a patch: expand each marker with `series.expand`"
            )
        return embeds.masked_scatter(markers.unsqueeze(-1), patches.to(embeds.dtype))

    def _keep_encoder_in_step(self, embeds: torch.Tensor) -> torch.Tensor:
        """Runs the encoder on one empty patch, times zero, where a batch has no series.

        DDP waits for every parameter's gradient and ZeRO-3 gathers weights in every process's forward: a process that
        left the encoder out would hang the others.
        """
        trains = self.training and any(p.requires_grad for p in self.ts_encoder.parameters())  # type: ignore[attr-defined]
        if not trains and not is_deepspeed_zero3_enabled():
            return embeds
        patches, _ = self.ts_encoder(torch.tensor([[[0.0], [1.0]]], device=embeds.device))
        return embeds + (patches * 0.0).sum().to(embeds.dtype)

    def _kept(self, labels: torch.Tensor, input_ids: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the indices into ``[batch * length]`` of tokens that have something to predict, and what that is."""
        if input_ids is not None:  # as published: a series' place is never something to predict
            labels = labels.masked_fill(input_ids == self.config.ts_token_start_index, _IGNORED)
        following = nn.functional.pad(labels[:, 1:], (0, 1), value=_IGNORED).flatten()
        rows = (following != _IGNORED).nonzero().squeeze(1)
        return rows, following.index_select(0, rows)

    def _loss(self, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Returns the next-token loss; the head runs only for the ``rows`` that have one of the ``targets``."""
        # One divisor for all pieces. Where no label is kept, the mean over nothing would be NaN and stop the run.
        count = kwargs.pop("num_items_in_batch", None)
        count = max(1, len(rows)) if count is None else count

        loss_function = self.loss_function  # type: ignore[attr-defined]

        def piece_loss(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = self.lm_head(hidden)
            if loss_function is ForCausalLMLoss:
                return summed_cross_entropy(logits, targets) / count
            loss: torch.Tensor = loss_function(
                logits=logits,
                labels=None,
                vocab_size=self.config.vocab_size,
                shift_labels=targets,
                num_items_in_batch=count,
                **kwargs,
            )
            return loss

        picked = hidden.flatten(0, 1).index_select(0, rows)
        if isinstance(self.lm_head, StreamedHead):
            loss = self.lm_head.summed_loss(picked, targets) / count
        else:
            head_is_trained = any(weight.requires_grad for weight in self.lm_head.parameters())
            loss = summed_in_pieces(piece_loss, picked, targets, self.config.vocab_size, head_is_trained, float(count))
        if self.training and not bool(loss.isfinite()):  # type: ignore[attr-defined]
            raise FloatingPointError(
                _describe(f"the loss is {float(loss.detach())}", hidden, self.lm_head.weight, True)
            )
        return loss

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits; hidden states that are float32 for their range's sake meet a head in half precision."""
        fits = hidden.dtype == self.lm_head.weight.dtype or torch.is_autocast_enabled(hidden.device.type)
        logits: torch.Tensor = self.lm_head(hidden if fits else hidden.to(self.lm_head.weight.dtype))
        return logits

    def _check_next_token(self, logits: torch.Tensor, hidden: torch.Tensor) -> None:
        """Raises where a token would be chosen among numbers that are none: answers would be noise, without a word."""
        if not bool(logits.isfinite().all()):
            raise FloatingPointError(
                _describe("the next token's logits are not finite", hidden, self.lm_head.weight, False)
            )

    def _checkpoints_on_cpu(self, device: torch.device) -> Any:
        """Returns the context in which layers leave their checkpoints in CPU memory, if they are to.

        With reentrant checkpoints a layer's input is all that is saved in here; what the second run of the layer saves
        is saved in the backward pass, out of reach.
        """
        if not (self.offload_checkpoints and self.training and torch.is_grad_enabled()):  # type: ignore[attr-defined]
            return nullcontext()
        return save_on_cpu(pin_memory=device.type == "cuda")

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, timeseries: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As upstream's; the series enter once, with the prompt, and are in the cache from then on."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[misc]
        held = kwargs.get(_CACHE)
        prefill = held is None or held.get_seq_length() == 0
        inputs["timeseries"] = timeseries if prefill else None
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """As upstream's, for beams and several answers; a row's series are repeated together, not one by one."""
        timeseries = kwargs.pop("timeseries", None)
        if timeseries is not None and expand_size > 1 and input_ids is not None:
            lengths = timeseries.reshape(len(timeseries), -1, 2)[..., 1].long().sum(1)
            patch_counts = (lengths - 1) // self.ts_encoder.patch_size + 1
            ends = (input_ids == self.config.ts_token_start_index).sum(1).cumsum(0)
            row = torch.searchsorted(ends, patch_counts.cumsum(0))  # row of each series
            rows = [(row == r).nonzero().flatten() for r in range(len(ends))]
            timeseries = timeseries[torch.cat([own for own in rows for _ in range(expand_size)])]
        input_ids, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size, input_ids=input_ids, **kwargs
        )
        kwargs["timeseries"] = timeseries
        return input_ids, kwargs


class Qwen2TSForCausalLM(ChatTSMixin, Qwen2ForCausalLM):  # type: ignore[misc]
    """ChatTS over Qwen2 and Qwen2.5 (ChatTS-14B)."""

    config_class = Qwen2TSConfig


class Qwen3TSForCausalLM(ChatTSMixin, Qwen3ForCausalLM):  # type: ignore[misc]
    """ChatTS over Qwen3 (ChatTS-8B)."""

    config_class = Qwen3TSConfig
