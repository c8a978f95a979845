"""Bytes of what comes and goes in a step: what the forward pass keeps, and what a backward pass needs at its peak.

Written down from what autograd saves in transformers' Qwen2 and Qwen3 with PEFT: a frozen linear layer saves nothing
of its input, one with a LoRA saves it; SDPA query, key, value, output and the logarithms of its sums. By
`llamafactory_ext.model.keep_less` an RMSNorm saves its input, and ``silu(gate) * up`` gate and up.
"""

from .memory_weights import Load, Settings, trained_parameters
from .shape import Shape


_PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)  # by their input
# As `llamafactory_ext.model.loss`, which needs torch; a test compares.
_LOGITS_AT_ONCE, _FEWEST_LABELS, _LOGITS_OF_ROWS = 2**26, 16, 2**20

_PIECE, _LOGITS_OF_A_PIECE = 2**26, 2**23  # as `llamafactory_ext.model.streamed_head`


def labels_at_once(vocab_size: int) -> int:
    """Labels whose logits are computed together."""
    return max(_FEWEST_LABELS, _LOGITS_AT_ONCE // vocab_size)


def hidden_bytes(settings: Settings) -> int:
    """Bytes of a number between the layers."""
    return 4 if settings.float32_between_layers or settings.full else settings.weight_bytes


def residual_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """The hidden states between two layers, ``[tokens, hidden_size]``: one checkpoint."""
    return load.tokens * shape.hidden_size * hidden_bytes(settings)


def input_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """The layers' inputs, which wait for the backward pass on the device; of offloaded ones the one that is in use.

    With float32 between the layers the first one's is in half precision still.
    """
    residual, offloaded = residual_bytes(shape, settings, load), _offloads(settings)
    waiting = residual if offloaded else shape.layers * residual
    if settings.quantization_bit is None and not settings.full and settings.checkpointing:
        waiting += residual  # PEFT wants a gradient of the embedding's output, which stays for it
    if settings.float32_between_layers and settings.weight_bytes == 2:
        waiting -= 0 if offloaded else residual // 2
    return waiting


def _offloads(settings: Settings) -> bool:
    """Whether checkpoints lie elsewhere than on the device: on a CPU they stay where they are."""
    return settings.offload_checkpoints and settings.checkpointing and settings.device == "cuda"


def kept_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """What layers without a checkpoint keep beside their input; the last layer is one of them, if there is one."""
    layers = _layers_kept(shape, settings)
    if not layers:
        return 0
    return layers * saved_bytes(shape, settings, load) - _unread_bytes(shape, settings, load)


def _layers_kept(shape: Shape, settings: Settings) -> int:
    return min(shape.layers, settings.layers_without_checkpoints) if settings.checkpointing else shape.layers


def _unread_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """What the last layer's MLP does not keep: it runs for tokens only that a label follows."""
    inputs = _inputs_of_trained(shape, settings, _PROJECTIONS[2:])
    each = _gated(settings) * _inner_bytes(settings) * shape.intermediate_size + inputs
    return max(0, load.tokens - load.labels) * each


def saved_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """What autograd saves of one decoder layer beside its input."""
    hidden, inner = hidden_bytes(settings), _inner_bytes(settings)
    width, mlp = shape.hidden_size, shape.intermediate_size
    # Of two norms: the first one's is the checkpoint itself. In float32 each keeps a number a row beside.
    norms = hidden * width + 8 * (hidden == 4)
    rows = hidden * (shape.head_dim + (hidden == 4))
    if hidden == 2 and not settings.keeps_less:  # copies in float32
        norms, rows = 8 * width + 8, 4 * (shape.head_dim + 1)
    each = norms + _inputs_of_trained(shape, settings) + _gated(settings) * inner * mlp
    if shape.qk_norm:  # norms, too
        each += (shape.heads + shape.kv_heads) * rows
    each += _attention(shape, settings)
    return load.tokens * each + _scores(shape, settings, load)


def _gated(settings: Settings) -> int:
    """How many of gate, its activation and up are kept."""
    return 2 if settings.keeps_less else 3


def _inner_bytes(settings: Settings) -> int:
    """Bytes of a number inside the MLP."""
    return 4 if settings.float32_between_layers else settings.compute_bytes


def _inputs_of_trained(
    shape: Shape, settings: Settings, projections: tuple[tuple[str, ...], ...] = _PROJECTIONS
) -> int:
    """Bytes a token: inputs that trained layers keep, and LoRA's inner results.

    The input of ``o_proj`` is the attention's output, which is kept anyway.
    """
    compute, hidden = settings.compute_bytes, hidden_bytes(settings)
    total = 0
    for names in projections:  # these share an input, but autocast casts it for each
        trained = sum(settings.trains(name) for name in names)
        width = 0 if names == ("o_proj",) else shape.linears[names[0]][0]
        each = hidden > compute or (settings.mixed_precision and settings.quantization_bit is None)  # by PEFT
        total += width * compute * (trained if each else min(trained, 1))
        total += 0 if settings.full or settings.freeze else trained * settings.lora_rank * compute
    return total


def _attention(shape: Shape, settings: Settings) -> int:
    """Bytes a token that attention saves, but for scores."""
    # On cards keys and values are repeated to all heads: always so on Turing, elsewhere with padded batches.
    keys = shape.attention_size if settings.device == "cuda" or settings.attention == "eager" else shape.kv_size
    return settings.compute_bytes * 2 * (shape.attention_size + keys) + 4 * shape.heads


def _scores(shape: Shape, settings: Settings, load: Load) -> int:
    """Bytes of scores ``[rows, heads, length, length]``, written out by eager attention alone; and of the mask."""
    squares = load.tokens * -(-load.tokens // load.rows)
    mask = squares * settings.compute_bytes if load.rows > 1 else 0
    if settings.attention != "eager":
        return mask
    return mask + shape.heads * squares * (4 + settings.compute_bytes)  # softmax in float32, and cast


def layer_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """Peak of one layer's backward pass, beyond what all layers keep.

    When a layer is computed again, those that kept everything are done, and what they kept is free.
    """
    residual, half = residual_bytes(shape, settings, load), load.tokens * settings.compute_bytes
    layers_kept = _layers_kept(shape, settings)
    # The layer's output, and the gradient that comes to it: in place of the last layer's input, if that has waited.
    ends = residual * (1 + (layers_kept > 0 or _offloads(settings)))
    # The last layer's MLP has few tokens, and where the one before has all, what the last one kept is free.
    backward = _backward_bytes(shape, settings, load)
    saved, unread = saved_bytes(shape, settings, load), _unread_bytes(shape, settings, load)
    first = _backward_bytes(shape, settings, load, min(load.tokens, load.labels))
    first = max(first, backward - (saved - unread) if layers_kept > 1 else 0)
    if layers_kept == shape.layers:
        return ends + first
    # When it is computed again, at `down_proj`: the product, and the output; what runs still holds the MLP's input, in
    # place of the layer's output. Where the projection is not skipped (`model.last_product`), its weight, too.
    mlp = load.tokens * shape.intermediate_size * _inner_bytes(settings)
    forward = mlp + half * shape.hidden_size
    if settings.float32_between_layers:
        forward += half * shape.intermediate_size  # the product, cast
    if settings.trains("down_proj"):  # the product has been saved
        forward -= mlp
    if settings.trains("down_proj") or not settings.keeps_less:
        forward += _weight_at_once(shape, settings)
    again = saved + max(forward, backward) - kept_bytes(shape, settings, load)
    return ends + max(again, first if layers_kept else 0)


def _backward_bytes(shape: Shape, settings: Settings, load: Load, rows: int | None = None) -> int:
    """What a layer's backward pass takes beyond what was saved, in its MLP or for scores that are written out.

    ``rows``: tokens that the MLP sees, if not all.
    Of the MLP: gradients of the product, which is free then, and of both factors; or of the product, with the weight
    that it came through. Of scores as much as is kept of them, when nothing is kept of the MLP any more.
    """
    each = shape.intermediate_size * _inner_bytes(settings)
    mlp = (load.tokens if rows is None else rows) * each
    scores = _scores(shape, settings, load) - 2 * load.tokens * each if settings.attention == "eager" else 0
    return max(3 * mlp - mlp * settings.trains("down_proj"), mlp + _weight_at_once(shape, settings), scores)


def _weight_at_once(shape: Shape, settings: Settings) -> int:
    """One of the MLP's weights as it is computed with: 4 bit written out, or cast by autocast."""
    weight = shape.hidden_size * shape.intermediate_size * settings.compute_bytes
    if settings.quantization_bit is not None:
        return weight
    return weight if settings.weight_bytes > settings.compute_bytes else 0


def forward_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """Peak of the forward pass before the loss, in the last layers' MLP, beyond checkpoints.

    At `up_proj`: its input and weight, gate and up; and of all layers' adapters what autocast made of them. Where the
    last layers keep everything, that input and these two are among what they keep.
    """
    each = 2 * shape.intermediate_size * _inner_bytes(settings) + shape.hidden_size * hidden_bytes(settings)
    rows = 0 if _layers_kept(shape, settings) else load.tokens
    return rows * each + _weight_at_once(shape, settings) + _adapter_casts(shape, settings)


def _adapter_casts(shape: Shape, settings: Settings) -> int:
    """Autocast's copies of what is trained beside the frozen model, which it keeps to the end of the forward pass."""
    casts = settings.mixed_precision and not settings.full
    return trained_parameters(shape, settings) * settings.compute_bytes if casts else 0


def loss_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """Peak of the loss: one piece's logits, as the head writes them, and a few rows' of them twice in float32.

    Autocast still has its copies of the adapter's weights then. With a streamed head: two pieces of its weight, logits
    by one of them, and for each label a few rows in float32.
    """
    pieces = max(1, -(-load.labels // labels_at_once(shape.vocab_size)))
    labels = -(-load.labels // pieces)  # pieces are equal
    final_norm = load.tokens * shape.hidden_size * 2 * hidden_bytes(settings)  # what it was given, and its result
    gathered = load.labels * shape.hidden_size * hidden_bytes(settings)
    gathered += _adapter_casts(shape, settings)
    if settings.stream_head:
        rows = min(_PIECE // (shape.hidden_size * settings.weight_bytes), shape.vocab_size)
        pieces_bytes = 2 * rows * shape.hidden_size * settings.weight_bytes
        logits = 3 * 4 * min(load.labels * rows, _LOGITS_OF_A_PIECE)
        return pieces_bytes + logits + 5 * 4 * load.labels * shape.hidden_size + final_norm + gathered
    slopes = load.labels * shape.hidden_size * hidden_bytes(settings)  # of all pieces
    rows = min(labels, max(1, _LOGITS_OF_ROWS // shape.vocab_size))
    return (labels * settings.compute_bytes + 2 * rows * 4) * shape.vocab_size + final_norm + gathered + slopes


def final_norm_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """Peak of the last norm's backward pass: input, gradient, and three or four times as many numbers in float32."""
    hidden = hidden_bytes(settings)
    return load.tokens * shape.hidden_size * (2 * hidden + (16 if hidden == 4 else 12))


def encoder_activation_bytes(shape: Shape, settings: Settings, load: Load) -> int:
    """What the encoder keeps of all patches to the end of the backward pass: inputs of linear layers and of GELUs."""
    if not settings.train_encoder:
        return 0
    first, others = shape.encoder_linears[0][0], shape.encoder_layers - 1
    return load.patches * settings.compute_bytes * (first + 2 * others * shape.hidden_size)
