"""What a run will train on: records and tokens, LLaMA-Factory's own way, or estimated where there is no tokenizer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llamafactory_ext.toolbox.plan.memory import Load
from llamafactory_ext.toolbox.session import framework
from llamafactory_ext.toolbox.session.framework import CheckError
from llamafactory_ext.toolbox.session.recipe import Arguments
from llamafactory_ext.toolbox.session.records import Part, facts
from llamafactory_ext.toolbox.session.silence import silence
from llamafactory_ext.toolbox.session.tokens import Tokens, count_tokens


_TEMPLATE_TOKENS = 30  # roles and line ends of one question and its answer, and the default system prompt
_STATISTICS_TOKENS = 90  # the line of a series' offset, scaling, length, … is mostly digits


@dataclass(frozen=True)
class Data:
    """Attributes:
    read: records in the files.
    rows: what one epoch goes through: records, or packs of them.
    tokens: of each row.
    estimated: whether the tokens are, for want of a tokenizer.
    why_estimated: what there was instead.
    """

    read: int
    rows: int
    held_out: int
    tokens: Sequence[Tokens]
    why_estimated: str = ""

    @property
    def estimated(self) -> bool:
        return bool(self.why_estimated)

    def load(self, batch: int, pad_to: int = 8) -> Load:
        """Returns the heaviest batch that can come together: the longest records, padded to the longest of them."""
        batch = min(batch, len(self.tokens))
        longest = math.ceil(max(one.whole for one in self.tokens) / pad_to) * pad_to
        answers, patches = (
            sum(sorted((getattr(one, part) for one in self.tokens), reverse=True)[:batch])
            for part in ("answer", "series")
        )
        return Load(tokens=batch * longest, labels=answers, patches=patches, rows=batch)


def read_data(arguments: Arguments, patch_size: int) -> Data:
    """Reads the data sets as the run will.

    Raises:
        CheckError: training would stop: records that can't be used or do not fit, a split that is not possible.
    """
    parts = [Part(name, framework.load(entry, arguments)) for name, entry in arguments.entries.items()]
    read = sum(len(part.dataset) for part in parts)
    try:
        tokenizer = framework.load_tokenizer(arguments)
    except CheckError as err:
        return _estimate(parts, arguments, read, patch_size, str(err))
    return _tokenise(arguments, tokenizer, read)


def _tokenise(arguments: Arguments, tokenizer: framework.Tokenizer, read: int) -> Data:
    from llamafactory.data import get_dataset

    with silence():
        try:
            module = get_dataset(
                tokenizer.template,
                arguments.model,
                arguments.data,
                arguments.training,
                stage="sft",
                tokenizer=tokenizer.tokenizer,
                processor=tokenizer.processor,
            )
        except (ValueError, RuntimeError, OSError) as err:
            raise CheckError(str(err)) from err
    rows = module["train_dataset"]
    held_out = module.get("eval_dataset")
    from_these = held_out is not None and not arguments.validation
    return Data(read, len(rows), len(held_out) if from_these else 0, count_tokens(rows, tokenizer))


def _estimate(parts: Sequence[Part], arguments: Arguments, read: int, patch_size: int, why: str) -> Data:
    if arguments.data.packing or arguments.data.neat_packing:
        raise CheckError(f"records are packed by their tokens, and there is no tokenizer to count them: {why}")
    tokens: list[Tokens] = []
    for part in parts:
        for one in facts(part):
            if one.fault:
                raise CheckError(f"{one.name}: {one.fault}; `llamafactory-ext check` lists all such records")
            # A token a character: digits and most of Chinese, the rest takes fewer.
            text = _TEMPLATE_TOKENS + _STATISTICS_TOKENS * len(one.series) + one.prompt_characters
            patches = sum(math.ceil(series.length / patch_size) for series in one.series)
            tokens.append(Tokens(text, patches, one.answer_characters))
    held = set(framework.validation_rows([len(part.dataset) for part in parts], arguments))
    kept = [one for row, one in enumerate(tokens) if row not in held]
    return Data(read, len(kept), len(held), kept, why)
