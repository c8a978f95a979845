"""What the arithmetic of memory starts from, and bytes of what stays: weights, adapter, gradients, optimiser."""

from dataclasses import dataclass
from typing import Literal

from .shape import Shape


_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LIVE_PARAMETERS = 10**9  # stage3_max_live_parameters of yaml/deepspeed/
_STATES = {"sgd": 0, "lion": 4, "adafactor": 0}  # bytes a trained parameter, float32; all others have Adam's 8


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
        train_encoder: LoRA on the series encoder, or with full and freeze tuning its weights.
        trainable_layers: decoder layers that freeze tuning trains.
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
    trainable_layers: int = 0
    optimizer: str = "adamw_torch"
    checkpointing: bool = True
    layers_without_checkpoints: int = 0
    offload_checkpoints: bool = False
    embedding_on_cpu: bool = False
    stream_head: bool = False
    stream_layers: int = 0
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
    def freeze(self) -> bool:
        """Whether some of the model's own weights are trained: the encoder, and `trainable_layers` decoder layers."""
        return self.finetuning_type == "freeze"

    @property
    def keeps_less(self) -> bool:
        """Whether `llamafactory_ext.model.keep_less` is at work: not where DeepSpeed gathers weights."""
        return self.zero_stage == 0

    @property
    def float32_between_layers(self) -> bool:
        """Whether hidden states and the MLP's inner ones are float32, although linear layers compute in half.

        bitsandbytes gives back the type that it was given, and norms with float32 weights give float32.
        """
        return self.quantization_bit is not None and self.upcast_layernorm

    def trains(self, target: str) -> bool:
        """Whether a decoder's linear layer is trained or carries a LoRA, so that its input is kept."""
        if self.freeze:
            return self.trainable_layers > 0
        return self.full or "all" in self.lora_target or target in self.lora_target


def weight_bytes(shape: Shape, settings: Settings) -> int:
    """Decoder layers: linear layers, biases, norms. With ZeRO-3 all weights of the model, as far as on the device."""
    size = settings.weight_bytes
    if settings.zero_stage == 3:
        shard = (
            0 if settings.offload_param and settings.device == "cuda" else -(-shape.parameters // settings.processes)
        )
        # Gathered for use, and kept as long as they may be used again soon.
        return size * (shard + min(shape.parameters - shard, _LIVE_PARAMETERS))
    norm = 4 if settings.upcast_layernorm else size
    small = shape.bias_parameters * size + shape.norm_parameters * norm
    if settings.full:
        return 4 * (shape.linear_parameters + shape.bias_parameters + shape.norm_parameters) + _cast(shape, settings)
    if settings.quantization_bit is None:
        return shape.linear_parameters * size + small + _trained_layers(shape, settings) * (4 - size)
    return int(shape.linear_parameters * _quantised(settings)) + small


def _trained_layers(shape: Shape, settings: Settings) -> int:
    """Weights of the decoder layers that freeze tuning trains."""
    if not settings.freeze:
        return 0
    every = shape.linear_parameters + shape.bias_parameters + shape.norm_parameters
    return every * min(settings.trainable_layers, shape.layers) // shape.layers


def layers_away(shape: Shape, settings: Settings) -> int:
    """Bytes of streamed layers, all in CPU memory: 4-bit weights without their scales. On a CPU that is the device."""
    if settings.device == "cpu":
        return 0
    return min(settings.stream_layers, shape.layers) * _packed_layer(shape)


def layers_on_their_way(shape: Shape, settings: Settings) -> int:
    """Bytes of streamed layers on the device: of one that is used or comes; of both, where neighbours are streamed."""
    streamed = min(settings.stream_layers, shape.layers)
    return min(streamed, 1 if streamed <= shape.layers // 2 else 2) * _packed_layer(shape)


def _packed_layer(shape: Shape) -> int:
    return shape.linear_parameters // shape.layers // 2


def _quantised(settings: Settings) -> float:
    """Bytes a weight in bitsandbytes' formats: 4 bit in blocks of 64 with a scale each, 8 bit with one a row."""
    if settings.quantization_bit == 8:
        return 1.0
    if settings.double_quantization:  # scales in 8 bit, in blocks of 256 with a float32 each
        return 0.5 + 1 / 64 + 4 / (64 * 256)
    return 0.5 + 4 / 64


def _cast(shape: Shape, settings: Settings) -> int:
    """Autocast keeps its copies of trained weights to the end of the forward pass."""
    return shape.linear_parameters * settings.compute_bytes if settings.mixed_precision else 0


def embedding_bytes(shape: Shape, settings: Settings) -> int:
    """The table of token embeddings, wherever it lies."""
    return _whole(shape.embedding_parameters, settings, trained=settings.full)


def head_bytes(shape: Shape, settings: Settings) -> int:
    """The head, which is never quantised."""
    return _whole(shape.head_parameters, settings, trained=settings.full)


def encoder_bytes(shape: Shape, settings: Settings) -> int:
    """The series encoder, which is never quantised."""
    own = settings.full or settings.freeze
    return _whole(shape.encoder_parameters, settings, trained=own and settings.train_encoder)


def _whole(parameters: int, settings: Settings, trained: bool) -> int:
    if settings.zero_stage == 3:  # in `weight_bytes`
        return 0
    return parameters * (4 if trained else settings.weight_bytes)  # LLaMA-Factory casts what is trained to float32


def trained_parameters(shape: Shape, settings: Settings) -> int:
    """Those that have a gradient."""
    if settings.full:
        return shape.parameters - (0 if settings.train_encoder else shape.encoder_parameters)
    if settings.freeze:
        return _trained_layers(shape, settings) + shape.encoder_parameters * settings.train_encoder
    return shape.lora_parameters(settings.lora_rank, settings.lora_target, settings.train_encoder)


def adapter_bytes(shape: Shape, settings: Settings) -> int:
    """LoRA's weights."""
    if settings.full or settings.freeze:
        return 0
    size = settings.weight_bytes if settings.zero_stage == 3 else 4
    return trained_parameters(shape, settings) * size


def gradient_bytes(shape: Shape, settings: Settings) -> int:
    """Gradients in the type of the trained weights; ZeRO-2 and -3 keep a process's share of them."""
    size = settings.weight_bytes if settings.zero_stage else 4
    shares = settings.processes if settings.zero_stage >= 2 else 1
    if settings.offload_optimizer:  # they go to the CPU as they come
        shares = max(shares, shape.layers)
    return -(-trained_parameters(shape, settings) * size // shares)


def optimiser_bytes(shape: Shape, settings: Settings) -> int:
    """The optimiser's states of one process, wherever they lie; with ZeRO its float32 weights, too."""
    name = settings.optimizer.removeprefix("paged_")
    size = 2 if "8bit" in name else next((size for key, size in _STATES.items() if name.startswith(key)), 8)
    if settings.zero_stage == 0:
        return trained_parameters(shape, settings) * size
    return -(-trained_parameters(shape, settings) * (size + 4) // settings.processes)


def offloaded_weight_bytes(shape: Shape, settings: Settings) -> int:
    """Weights that ZeRO-3 keeps in CPU memory, of all processes; each tensor's share is a block of its own."""
    if settings.zero_stage != 3 or not settings.offload_param:
        return 0
    if not settings.pin_memory:
        return shape.parameters * settings.weight_bytes
    tensors = [(width * out, shape.layers) for width, out in shape.linears.values()]
    tensors += [(shape.embedding_parameters, 1), (shape.head_parameters, 1)]
    tensors += [(width * out, 1) for width, out in shape.encoder_linears]
    tensors += [(shape.embedding_dim * (shape.max_sequence_length + 1) * shape.use_position_embedding, 1)]
    shares = ((-(-numbers // settings.processes), count) for numbers, count in tensors)
    each = sum(count * pinned(share * settings.weight_bytes) for share, count in shares)
    return settings.processes * each


def pinned(size: int) -> int:
    """Bytes that a block of pinned memory takes: torch rounds up to a power of two (pytorch issue 150517)."""
    return 1 << (size - 1).bit_length() if size > 0 else 0
