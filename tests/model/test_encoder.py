"""The batched encoder against one that goes series by series and patch by patch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers_model import ts_section
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory_ext.model import TimeSeriesEncoder
from llamafactory_ext.model.limits import _encoder_weights
from llamafactory_ext.series import encode


def build(seed: int = 0, **section: Any) -> TimeSeriesEncoder:
    torch.manual_seed(seed)
    encoder = TimeSeriesEncoder(ts_section(**section)).double()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.copy_(torch.randn_like(weight) * 0.4)
    return encoder


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def one_by_one(encoder: TimeSeriesEncoder, series: list[list[float]], **changes: Any) -> torch.Tensor:
    """The embeddings of all patches, computed from the weights alone."""
    section = ts_section(**changes)
    weights = {name: weight.detach() for name, weight in encoder.state_dict().items()}
    size, unmeasured = section["patch_size"], section["max_sequence_length"]
    rows = []
    for values in series:
        for start in range(0, len(values), size):
            patch, places = [], []
            for place in range(start, start + size):
                measured = place < len(values)
                patch.append(values[place] if measured else values[-1])
                places.append(place if measured else unmeasured)
            if section["use_position_embedding"]:
                for place in places:
                    patch += weights["position_embedding.weight"][place].tolist()
            x = torch.tensor(patch, dtype=torch.float64)
            for layer in range(section["num_layers"]):
                x = gelu(x) if layer else x
                x = weights[f"mlp.{2 * layer}.weight"] @ x + weights[f"mlp.{2 * layer}.bias"]
            if section.get("use_layer_norm"):
                x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
                last = 2 * section["num_layers"] - 1
                x = x * weights[f"mlp.{last}.weight"] + weights[f"mlp.{last}.bias"]
            rows.append(x)
    return torch.stack(rows)


def tensor_of(series: list[list[float]]) -> torch.Tensor:
    """The tensor of series whose values are taken as they stand (no scaling)."""
    longest = max(map(len, series))
    out = torch.zeros(len(series), 2 * longest, 1, dtype=torch.float16)
    for row, values in zip(out, series, strict=True):
        row[: 2 * len(values) : 2, 0] = torch.tensor(values)
        row[1 : 2 * len(values) : 2, 0] = 1
    return out


def random_series(lengths: list[int], seed: int = 0) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-3, 3, length).astype(np.float16).astype(float).tolist() for length in lengths]


def agrees(lengths: list[int], seed: int = 0, **changes: Any) -> None:
    encoder = build(seed, **changes)
    series = random_series(lengths, seed)
    with torch.no_grad():
        patches, counts = encoder(tensor_of(series))
    size = ts_section(**changes)["patch_size"]
    assert counts.tolist() == [math.ceil(length / size) for length in lengths]
    expected = one_by_one(encoder, series, **changes)
    torch.testing.assert_close(patches, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 48), min_size=1, max_size=5),
    patch_size=st.sampled_from([8, 16]),
    num_layers=st.integers(1, 5),
    position=st.booleans(),
    norm=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_one_by_one(lengths, patch_size, num_layers, position, norm, seed):
    changes = {"use_position_embedding": position, "use_layer_norm": norm, "num_layers": num_layers}
    agrees(lengths, seed, patch_size=patch_size, max_sequence_length=48, **changes)


@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("lengths", [[1], [8], [16], [15, 16, 17], [48, 1], [47, 48]])
def test_edges(lengths, patch_size):
    agrees(lengths, patch_size=patch_size, max_sequence_length=48)


def test_more_points_than_float16_can_count():
    agrees([2049, 5003, 4], max_sequence_length=6000, embedding_dim=2, num_layers=2)


def test_zeros_after_a_series_and_its_neighbours_do_not_matter():
    encoder = build()
    short, long = random_series([5, 40])
    with torch.no_grad():
        alone, _ = encoder(tensor_of([short]))
        beside, counts = encoder(tensor_of([short, long]))
    assert counts.tolist() == [1, 5]
    torch.testing.assert_close(beside[:1], alone, rtol=0, atol=1e-12)


def test_takes_what_the_series_module_gives():
    encoder = build()
    tensor = torch.from_numpy(encode([np.arange(20.0), [5.0]]))
    with torch.no_grad():
        patches, counts = encoder(tensor)
    assert counts.tolist() == [3, 1]
    values = [tensor[0, ::2, 0].double().tolist(), [0.0]]
    torch.testing.assert_close(patches, one_by_one(encoder, values), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float16_input_meets_weights_of_any_type(dtype):
    encoder = build().to(dtype)
    patches, _ = encoder(tensor_of(random_series([20])))
    assert patches.dtype == dtype
    assert torch.isfinite(patches).all()


def test_gradient_reaches_every_parameter():
    encoder = build(use_layer_norm=True, max_sequence_length=48)
    patches, _ = encoder(tensor_of(random_series([20, 3])))
    (patches * torch.randn_like(patches)).sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    embedding = encoder.position_embedding
    assert embedding is not None
    used = embedding.weight.grad.abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == [*range(20), 48], "real places, and the one for filled-up points"


def test_published_names_and_shapes():
    section = ts_section(patch_size=8, embedding_dim=16, num_layers=5, max_sequence_length=100)
    shapes = {name: tuple(weight.shape) for name, weight in TimeSeriesEncoder(section).state_dict().items()}
    width = section["hidden_size"]
    expected: dict[str, tuple[int, ...]] = {"position_embedding.weight": (101, 16), "mlp.0.weight": (width, 8 + 128)}
    expected |= {f"mlp.{index}.weight": (width, width) for index in (2, 4, 6, 8)}
    expected |= {f"mlp.{index}.bias": (width,) for index in (0, 2, 4, 6, 8)}
    assert shapes == expected


@pytest.mark.parametrize("changes", [{}, {"patch_size": 16, "embedding_dim": 3, "num_layers": 2}])
def test_weights_are_counted_before_the_encoder_is_made(changes: dict[str, int]) -> None:
    """Its matrices, which a config of a stranger may make as large as it says."""
    matrices = [one.numel() for one in build(**changes).parameters() if one.ndim == 2]
    assert _encoder_weights(ts_section(**changes)) == sum(matrices)
