"""The series matter: what the text does not tell is learnt from the patches, through the real command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Gdsh, annotation, answer, run_cli


def bump(place: int) -> list[float]:
    """64 points with one bump. Mean, extremes, ends and length are the same for every place: so is the prompt."""
    values = [0.0] * 64
    values[8 * place + 2 : 8 * place + 6] = [1.0, 2.0, 2.0, 1.0]
    return values


@pytest.fixture(scope="module")
def learnt(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Eight records with one prompt, learnt by heart; the model's folder and the answers."""
    folder = tmp_path_factory.mktemp("learning")
    data = Gdsh(folder / "data")
    answers = []
    for place in range(8):
        data.csv(f"point{place}.csv", bump(place))
        answers.append(answer((8 * place + 2, 8 * place + 5)))
    data.records(*[annotation(f"point{place}.jpg", answers[place]) for place in range(8)])
    keys = {
        "model_name_or_path": demo / "model",
        "dataset": "a",
        "dataset_dir": data.folder,
        "output_dir": folder / "out",
        "per_device_train_batch_size": 8,
        "max_steps": 250,
        "save_steps": 1000,
        "plot_loss": "false",
    }
    run = run_cli(
        "train", str(ROOT / "yaml" / "cpu_demo.yaml"), *[f"{key}={value}" for key, value in keys.items()], cwd=folder
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    return folder / "out", answers


def replies(model_folder: Path, series: list[list[float]]) -> list[str]:
    """Greedy answers to the training prompt, one batch, left padding."""
    from llamafactory_ext.model import ChatTSProcessor, Qwen2TSForCausalLM

    model = Qwen2TSForCausalLM.from_pretrained(model_folder).eval()
    processor = ChatTSProcessor.from_pretrained(str(model_folder))
    user = annotation()["conversations"][0]["value"].replace("<image>", "<ts><ts/>")
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs: Any = processor([prompt] * len(series), timeseries=series, padding=True)
    assert len({tuple(row) for row in inputs["input_ids"].tolist()}) == 1  # the text is the same for all
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        output = model.generate(
            **inputs,
            max_new_tokens=100,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
    return list(processor.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_eight_answers_are_given_back_from_the_series_alone(learnt: tuple[Path, list[str]]) -> None:
    model, answers = learnt
    assert replies(model, [bump(place) for place in range(8)]) == answers


def test_exchanged_series_give_the_other_answers(learnt: tuple[Path, list[str]]) -> None:
    model, answers = learnt
    exchanged = replies(model, [bump((place + 3) % 8) for place in range(8)])
    assert sum(reply == wanted for reply, wanted in zip(exchanged, answers, strict=True)) <= 2
