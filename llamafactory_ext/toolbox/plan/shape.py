"""The dimensions of a ChatTS model, and the parameters that they come to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_REQUIRED_TS = ("patch_size", "embedding_dim", "num_layers", "max_sequence_length")


@dataclass(frozen=True)
class Shape:
    """Dimensions of decoder and series encoder.

    Attributes:
        tied: the head is the embedding's weight.
        attention_bias: query, key and value have biases (Qwen2); together with ``qk_norm`` the output has one, too.
        qk_norm: queries and keys are normalised (Qwen3).
        patch_size: points that a patch holds.
        embedding_dim: width of the embedding of a point's place.
        encoder_layers: linear layers of the encoder.
        max_sequence_length: points of the longest series.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool = False
    attention_bias: bool = True
    qk_norm: bool = False
    patch_size: int = 8
    embedding_dim: int = 16
    encoder_layers: int = 5
    max_sequence_length: int = 32_768
    use_position_embedding: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | Any) -> "Shape":
        """Reads a checkpoint's ``config.json``, or a config object that has ``to_dict``.

        Raises:
            ValueError: keys are missing, among them the ``ts`` section; all of them are named.
        """
        given: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
        section = given.get("ts") or {}
        missing = [key for key in _REQUIRED if given.get(key) is None]
        missing += [f"ts.{key}" for key in _REQUIRED_TS if section.get(key) is None]
        if missing:
            raise ValueError(
                f"the config has no {', '.join(missing)}; expected the config.json of a ChatTS checkpoint"
            )
        names = " ".join([*(given.get("architectures") or []), str(given.get("model_type"))]).lower()
        qwen3 = "qwen3" in names
        hidden, heads = given["hidden_size"], given["num_attention_heads"]
        return cls(
            hidden_size=hidden,
            layers=given["num_hidden_layers"],
            heads=heads,
            kv_heads=given.get("num_key_value_heads") or heads,
            head_dim=given.get("head_dim") or (128 if qwen3 else hidden // heads),
            intermediate_size=given["intermediate_size"],
            vocab_size=given["vocab_size"],
            tied=bool(given.get("tie_word_embeddings", False)),
            attention_bias=bool(given.get("attention_bias", False)) if qwen3 else True,
            qk_norm=qwen3,
            patch_size=section["patch_size"],
            embedding_dim=section["embedding_dim"],
            encoder_layers=section["num_layers"],
            max_sequence_length=section["max_sequence_length"],
            use_position_embedding=bool(section.get("use_position_embedding", False)),
        )

    @property
    def attention_size(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together; that of the value heads."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each linear layer of one decoder layer, by its name."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.attention_size),
            "k_proj": (hidden, self.kv_size),
            "v_proj": (hidden, self.kv_size),
            "o_proj": (self.attention_size, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def encoder_linears(self) -> list[tuple[int, int]]:
        """Input and output width of the encoder's linear layers."""
        width = self.patch_size * (1 + self.embedding_dim * self.use_position_embedding)
        return [(width, self.hidden_size)] + [(self.hidden_size, self.hidden_size)] * (self.encoder_layers - 1)

    @property
    def linear_parameters(self) -> int:
        """Weights of all decoder layers' linear layers, without biases: what is quantised."""
        return self.layers * sum(width * out for width, out in self.linears.values())

    @property
    def bias_parameters(self) -> int:
        """Biases of all decoder layers."""
        if not self.attention_bias:
            return 0
        return self.layers * (self.attention_size + 2 * self.kv_size + self.hidden_size * self.qk_norm)

    @property
    def norm_parameters(self) -> int:
        """Weights of all norms of the decoder."""
        return self.layers * 2 * (self.hidden_size + self.head_dim * self.qk_norm) + self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """The table of token embeddings."""
        return self.vocab_size * self.hidden_size

    @property
    def head_parameters(self) -> int:
        """The head's own weight; none where it is the embedding's."""
        return 0 if self.tied else self.embedding_parameters

    @property
    def encoder_parameters(self) -> int:
        """The series encoder: linear layers with biases, and the embedding of places."""
        places = (self.max_sequence_length + 1) * self.embedding_dim * self.use_position_embedding
        return places + sum(width * out + out for width, out in self.encoder_linears)

    @property
    def parameters(self) -> int:
        """All of them; the ``num_parameters()`` of the model."""
        decoder = self.linear_parameters + self.bias_parameters + self.norm_parameters
        return decoder + self.embedding_parameters + self.head_parameters + self.encoder_parameters

    def lora_parameters(self, rank: int, targets: tuple[str, ...], encoder: bool) -> int:
        """Parameters of a LoRA of this rank on some linear layers (``all``: every one), and on the encoder's.

        Names that no layer has are passed over: LLaMA-Factory and PEFT say so when they meet them.
        """
        names = self.linears if "all" in targets else [name for name in self.linears if name in targets]
        decoder = sum(sum(self.linears[name]) for name in names)
        return rank * (self.layers * decoder + encoder * sum(sum(widths) for widths in self.encoder_linears))


KNOWN: dict[str, Shape] = {
    "chatts-14b": Shape(
        hidden_size=5120,
        layers=48,
        heads=40,
        kv_heads=8,
        head_dim=128,
        intermediate_size=13_824,
        vocab_size=152_064,
    ),
    "chatts-8b": Shape(
        hidden_size=4096,
        layers=36,
        heads=32,
        kv_heads=8,
        head_dim=128,
        intermediate_size=12_288,
        vocab_size=151_936,
        attention_bias=False,
        qk_norm=True,
    ),
}
"""Published checkpoints by a lower-case part of their names, for where no ``config.json`` can be read."""
