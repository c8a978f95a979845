"""What rounding a checkpoint's weights does to its answers: NF4, int8 and bfloat16 against float32, on a CPU.

    python tools/bench/drift.py                                     # demo/mini, 60 held-out series
    python tools/bench/drift.py FOLDER --records 200 --parts        # another checkpoint; and which part it comes from

Series and questions are those that mini is scored by (tools/mini/held_out.py). Each way answers them greedily. Beside
that each is shown float32's own answers, and at every token of these compared: how far its probabilities are from
float32's (Kullback-Leibler, nats a token), and how often its first choice is another one. NF4 is double-quantised in
blocks of 64, as the recipes have it, int8 is bitsandbytes' with its activations in 8 bit; encoder, embedding and head
stay as they are. `--parts`: NF4 with one kind of projection, or one layer, left in 16 bit.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import nn
from transformers import AutoModelForCausalLM

from llamafactory_ext.gdsh.events import agreement, event_counts
from llamafactory_ext.gdsh.readings import place, read_answer
from llamafactory_ext.model import ChatTSProcessor, read_config
from llamafactory_ext.toolbox.cli.terminal import DONE, complain, print_table, run
from llamafactory_ext.toolbox.demo.writing import MINI


sys.path.insert(0, str(Path(__file__).parents[1] / "mini"))
from held_out import draw


KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COLUMNS = ("weights", "nats a token", "other first choice", "other answer", "event F1")
_AT_ONCE = 20


@dataclass(frozen=True)
class Drift:
    """What became of the answers.

    Attributes:
        nats: mean Kullback-Leibler divergence from float32's probabilities, a token.
        choices: share of tokens whose first choice is another one.
        answers: share of answers that differ.
        event_f1: against the labels, of the answers.
    """

    nats: float
    choices: float
    answers: float
    event_f1: float

    def cells(self) -> list[str]:
        return [f"{self.nats:.5f}", f"{self.choices:.2%}", f"{self.answers:.0%}", f"{self.event_f1:.3f}"]


def projections(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yields the decoder's linear layers, which are what is quantised, with their names."""
    for name, module in model.model.layers.named_modules():
        if type(module) is nn.Linear:
            yield name, module


def round_to_nf4(model: Any, skips: Callable[[str], bool] = lambda name: False) -> Any:
    """Gives the model's projections the values that 4 bit leaves of them; computes on in float32."""
    for name, linear in projections(model):
        if not skips(name):
            packed, state = quantize_4bit(linear.weight.data, quant_type="nf4", compress_statistics=True)
            linear.weight.data = dequantize_4bit(packed, state).to(linear.weight.dtype)
    return model


def use_int8(model: Any) -> Any:
    """Puts bitsandbytes' 8-bit layers in place of the projections."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    for name, linear in list(projections(model)):
        small = Linear8bitLt(
            linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, threshold=6.0
        )
        small.weight = Int8Params(linear.weight.data.half(), requires_grad=False, has_fp16_weights=False)
        small.bias = linear.bias
        model.model.layers.set_submodule(name, small.to("cpu"))
    return model


class Asked:
    """A checkpoint's processor, and records asked of models made of it.

    Arguments:
        folder: the checkpoint.
        records: of `held_out.draw`.
    """

    def __init__(self, folder: Path, records: Sequence[dict[str, Any]]) -> None:
        self.processor = ChatTSProcessor.from_pretrained(str(folder))
        # Of like length together.
        self.records = sorted(records, key=lambda one: len(one["timeseries"][0]))

    def batches(self) -> Iterator[Any]:
        for at in range(0, len(self.records), _AT_ONCE):
            some = self.records[at : at + _AT_ONCE]
            turns = [[{"role": "user", "content": one["input"]}] for one in some]
            texts = [
                self.processor.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
                for turn in turns
            ]
            series = [series for one in some for series in one["timeseries"]]
            yield self.processor(texts, series, padding=True, add_special_tokens=False)

    def answers(self, model: Any) -> list[torch.Tensor]:
        """Returns greedy answers, batch by batch, ``[records, tokens]``, filled up on the right."""
        found = []
        for batch in self.batches():
            output = model.generate(**batch, max_new_tokens=96, do_sample=False, use_cache=True)
            found.append(output[:, batch["input_ids"].shape[1] :])
        return found

    def logits(self, model: Any, answers: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yields the logits by which each token of given answers is chosen, ``[tokens, vocabulary]``, float32."""
        end = self.processor.tokenizer.eos_token_id
        for batch, answer in zip(self.batches(), answers, strict=True):
            past_end = (answer == end).cumsum(1) - (answer == end).long() > 0
            ids = torch.cat([batch["input_ids"], answer], dim=1)
            mask = torch.cat([batch["attention_mask"], (~past_end).long()], dim=1)
            output = model(input_ids=ids, attention_mask=mask, timeseries=batch["timeseries"], use_cache=False)
            yield output.logits[:, -answer.shape[1] - 1 : -1][~past_end].float()

    def event_f1(self, answers: Sequence[torch.Tensor]) -> float:
        counts = [0, 0, 0]
        texts = [text for part in answers for text in self.processor.tokenizer.batch_decode(part, True)]
        for record, text in zip(self.records, texts, strict=True):
            length = len(record["timeseries"][0])
            wanted, given = (place(read_answer(one).anomalies, length) for one in (record["output"], text))
            events = event_counts(*({(one.start, one.end) for one in found.inside} for found in (wanted, given)))
            events = events._replace(false_alarms=events.false_alarms + len(given.outside))
            counts = [before + more for before, more in zip(counts, events, strict=True)]
        return float(agreement(*counts).f1)

    def compare(self, model: Any, answers: Sequence[torch.Tensor], logits: Sequence[torch.Tensor]) -> Drift:
        """Returns how far a model is from the one that gave these answers and logits."""
        nats, others, tokens = 0.0, 0, 0
        for ours, theirs in zip(self.logits(model, answers), logits, strict=True):
            before = theirs.log_softmax(-1)
            nats += float(nn.functional.kl_div(ours.log_softmax(-1), before, reduction="sum", log_target=True))
            others += int((ours.argmax(-1) != theirs.argmax(-1)).sum())
            tokens += len(ours)
        own = self.answers(model)
        decode = self.processor.tokenizer.batch_decode
        pairs = [
            pair
            for one, other in zip(own, answers, strict=True)
            for pair in zip(decode(one, True), decode(other, True), strict=True)
        ]
        return Drift(nats / tokens, others / tokens, sum(a != b for a, b in pairs) / len(pairs), self.event_f1(own))


def ways(model: Any, parts: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields names and makers of changed models."""

    def nf4(skips: Callable[[str], bool]) -> Callable[[], Any]:
        return lambda: round_to_nf4(copy.deepcopy(model), skips)

    yield "bfloat16", lambda: copy.deepcopy(model).bfloat16()
    yield "int8", lambda: use_int8(copy.deepcopy(model))
    yield "NF4", nf4(lambda name: False)
    for kind in KINDS if parts else ():
        yield f"NF4 but {kind}", nf4(lambda name, kind=kind: name.endswith(kind))
    for number in range(len(model.model.layers)) if parts else ():
        yield f"NF4 but layer {number}", nf4(lambda name, number=number: name.startswith(f"{number}."))


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tools/bench/drift.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, default=MINI, help="a ChatTS checkpoint; default: demo/mini")
    parser.add_argument("--records", type=int, default=60, help="default: 60")
    parser.add_argument("--parts", action="store_true", help="NF4 with one kind of projection, or one layer, left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found here, too")
    given = parser.parse_args()
    config = read_config(str(given.model))
    model = AutoModelForCausalLM.from_pretrained(given.model, config=config, dtype=torch.float32).eval()
    asked = Asked(given.model, draw("plain", given.records, 0, every_type=True))
    answers = asked.answers(model)
    logits = list(asked.logits(model, answers))
    rows = [["float32", "–", "–", "–", f"{asked.event_f1(answers):.3f}"]]
    found = {}
    for name, make in ways(model, given.parts):
        complain(f"{name} …")
        drift = asked.compare(make(), answers, logits)
        rows.append([name, *drift.cells()])
        found[name] = vars(drift)
    print_table(f"{given.model.name}: {given.records} records, {sum(map(len, logits))} tokens", COLUMNS, rows)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return DONE


if __name__ == "__main__":
    run(main)
