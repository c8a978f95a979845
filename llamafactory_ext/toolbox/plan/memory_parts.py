"""What the arithmetic of memory starts from: a batch, and the settings of a run."""

from dataclasses import dataclass
from typing import Literal


_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Load:
    """What one process computes at once: the batch is multiplied in, padding counts.

    Attributes:
        tokens: places of all records, series' patches among them.
        labels: places where a loss is taken.
        patches: of all series.
        rows: records.
    """

    tokens: int
    labels: int
    patches: int
    rows: int = 1


@dataclass(frozen=True)
class Settings:
    """The keys of a recipe that decide about memory, under LLaMA-Factory's names where it has one.

    Attributes:
        weight_dtype: of weights that are neither quantised nor trained.
        mixed_precision: ``fp16`` or ``bf16``: autocast to ``compute_dtype``.
        layers_without_checkpoints: of the last ones; with ``checkpointing`` only.
        train_encoder: LoRA on the series encoder, or with full tuning its weights.
        zero_stage: DeepSpeed's; 0 is without it.
        processes: that train together, one card each.
    """

    device: Literal["cuda", "cpu"] = "cuda"
    quantization_bit: int | None = None
    double_quantization: bool = True
    compute_dtype: str = "float16"
    weight_dtype: str = "float16"
    mixed_precision: bool = True
    finetuning_type: str = "lora"
    lora_rank: int = 8
    lora_target: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    train_encoder: bool = True
    optimizer: str = "adamw_torch"
    checkpointing: bool = True
    layers_without_checkpoints: int = 0
    offload_checkpoints: bool = False
    embedding_on_cpu: bool = False
    upcast_layernorm: bool = False
    attention: str = "sdpa"
    zero_stage: int = 0
    offload_param: bool = False
    offload_optimizer: bool = False
    pin_memory: bool = False
    processes: int = 1

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number that a linear layer puts out."""
        return _BYTES[self.compute_dtype if self.mixed_precision else self.weight_dtype]

    @property
    def weight_bytes(self) -> int:
        """Bytes of a weight that is neither quantised nor trained."""
        return _BYTES[self.weight_dtype]

    @property
    def full(self) -> bool:
        """Whether the model's own weights are trained."""
        return self.finetuning_type == "full"

    @property
    def float32_between_layers(self) -> bool:
        """Whether hidden states and the MLP's inner ones are float32, although linear layers compute in half.

        bitsandbytes gives back the type that it was given, and norms with float32 weights give float32.
        """
        return self.quantization_bit is not None and self.upcast_layernorm

    def trains(self, target: str) -> bool:
        """Whether a decoder's linear layer is trained or carries a LoRA, so that its input is kept."""
        return self.full or "all" in self.lora_target or target in self.lora_target
