"""From a recipe's keys to what decides about memory, steps and files."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from llamafactory_ext.errors import UsageError
from llamafactory_ext.toolbox.plan.memory import Settings
from llamafactory_ext.toolbox.plan.shape import KNOWN, Shape
from llamafactory_ext.toolbox.plan.steps import Rhythm


# LLaMA-Factory's defaults where they are not those of the fields' types here.
_DEFAULTS = {"finetuning_type": "lora", "lora_target": "all", "optim": "adamw_torch", "flash_attn": "auto"}


@dataclass(frozen=True)
class Recipe:
    """A recipe with its overrides; `values` are LLaMA-Factory's keys."""

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return _DEFAULTS.get(key, default) if value is None else value

    @property
    def model(self) -> str:
        return str(self.get("model_name_or_path", ""))

    @property
    def output(self) -> Path:
        return Path(str(self.get("output_dir", "trainer_output")))

    @property
    def rhythm(self) -> Rhythm:
        """Raises UsageError where a number is none."""
        fields = {key: self.get(key, default) for key, default in vars(Rhythm()).items()}
        numbers = {key: value for key, value in fields.items() if key != "dataloader_drop_last"}
        for key, value in numbers.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise UsageError(f"{key} is {value!r}; expected a number")
        least = {"max_steps": -math.inf, "num_train_epochs": 0 if numbers["max_steps"] > 0 else 1e-9}
        for key, value in numbers.items():
            if value < least.get(key, 1):
                raise UsageError(f"{key} is {value!r}; expected more than 0")
        return Rhythm(**fields)

    @property
    def config(self) -> dict[str, Any] | None:
        """The model's ``config.json``; None where it can't be read, as before the first download.

        Raises:
            UsageError: it is there, and is no ChatTS model's.
        """
        found = _config_of(self.model, self.get("model_revision"), self.get("cache_dir"))
        is_folder = self.model != "" and Path(self.model).is_dir()
        if found is None and (is_folder or not self._known()):
            what = "no ChatTS checkpoint (no config.json with `ts`)" if is_folder else "neither there nor known"
            raise UsageError(
                f"{self.model or 'model_name_or_path'}: {what}; expected ChatTS-14B, ChatTS-8B or a folder"
            )
        return found

    @property
    def shape(self) -> Shape:
        known = self._known()
        return Shape.from_config(self.config) if self.config else known  # type: ignore[return-value]  # one of them is

    def _known(self) -> Shape | None:
        return next((shape for name, shape in KNOWN.items() if name in self.model.lower()), None)

    @cached_property
    def deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's configuration; empty without.

        Raises:
            UsageError: it can't be read.
        """
        path = self.get("deepspeed")
        if path is None:
            return {}
        if isinstance(path, dict):
            return path
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise UsageError(f"deepspeed: {path} can't be read ({err}); expected a JSON file of DeepSpeed's") from err
        return found if isinstance(found, dict) else {}

    def settings(self, device: str, processes: int) -> Settings:
        """Returns what decides about memory."""
        zero = self.deepspeed.get("zero_optimization", {})
        half = next((name for key, name in _HALVES.items() if self.get(key, False)), None)
        stated = str((self.config or {}).get("dtype") or (self.config or {}).get("torch_dtype") or "float16")
        weights = stated.removeprefix("torch.")
        if weights in _HALVES.values() and half:  # frozen weights are cast to what is computed in
            weights = half
        if zero.get("stage") == 3 and half:
            weights = half
        targets = self.get("lora_target")
        targets = targets.split(",") if isinstance(targets, str) else targets
        offloads = {
            key: zero.get(f"offload_{key}", {}).get("device") in ("cpu", "nvme") for key in ("param", "optimizer")
        }
        return Settings(
            device="cpu" if device == "cpu" else "cuda",
            quantization_bit=self.get("quantization_bit"),
            double_quantization=bool(self.get("double_quantization", True)),
            compute_dtype=half or weights,
            weight_dtype=weights,
            mixed_precision=half is not None,
            finetuning_type=self.get("finetuning_type"),
            lora_rank=int(self.get("lora_rank", 8)),
            lora_target=tuple(name.strip() for name in targets),
            train_encoder=bool(self.get("train_timeseries_modules", True)),
            trainable_layers=abs(int(self.get("freeze_trainable_layers", 2))),
            optimizer=str(self.get("optim")),
            checkpointing=not self.get("disable_gradient_checkpointing", False),
            layers_without_checkpoints=int(self.get("layers_without_checkpoints", 0)),
            offload_checkpoints=bool(self.get("offload_checkpoints", False)),
            embedding_on_cpu=bool(self.get("embedding_on_cpu", False)),
            stream_head=bool(self.get("stream_head", False)),
            stream_layers=int(self.get("stream_layers", 0)),
            upcast_layernorm=bool(self.get("upcast_layernorm", False)),
            attention="eager" if self.get("flash_attn") == "disabled" else "sdpa",
            zero_stage=int(zero.get("stage", 0)),
            offload_param=offloads["param"],
            offload_optimizer=offloads["optimizer"],
            pin_memory=bool(zero.get("offload_param", {}).get("pin_memory", False)),
            processes=processes,
        )

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Recipe":
        return replace(self, values={**self.values, **overrides})


@cache  # of all recipes and overrides that are tried: where no network is, asking takes half a minute
def _config_of(model: str, revision: str | None, cache_dir: str | None) -> dict[str, Any] | None:
    from llamafactory_ext.model import read_config
    from llamafactory_ext.toolbox.session.silence import silence

    with silence():
        try:
            found = read_config(model, revision=revision, cache_dir=cache_dir)
        except ValueError as err:
            raise UsageError(str(err)) from err
    return None if found is None else dict(found.to_dict())


_HALVES = {"fp16": "float16", "bf16": "bfloat16", "pure_bf16": "bfloat16"}
