"""Outputs: prepared records go to their files as they come, or, with a split, once all series are known."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from llamafactory_ext.files import Drafts, writing

from .options import Options, PrepareError
from .report import Line
from .splitting import Keys, choose_validation


@dataclass
class Outputs:
    """Where the records of a run go; names are those of `Options.outputs`."""

    options: Options
    drafts: Drafts
    written: Counter[str] = field(default_factory=Counter)
    """Records in each output."""
    records: int = 0
    _files: dict[str, BinaryIO] = field(default_factory=dict)
    _spools: dict[str, BinaryIO] = field(default_factory=dict)
    """With a split: all records of `out` and of `annotations`, one after another, in nameless files beside them."""
    _sizes: dict[str, list[int]] = field(default_factory=dict)
    """Of the records in a spool, in bytes."""
    _keys: list[Keys] = field(default_factory=list)
    _types: list[tuple[str, ...]] = field(default_factory=list)
    split: dict[str, Any] = field(default_factory=dict)
    """Of a split, once it is made: `groups` that had to stay together, and `types`, how many anomalies of each there
    are on either side."""

    def add(self, line: Line) -> None:
        """Take one more record.

        Raises:
            WriteError: it cannot be written.
        """
        self.records += 1
        forms = {"out": line.chatts, "annotations": line.gdsh}
        for name in forms.keys() & self.options.outputs.keys():
            if self.options.split is None:
                self._write(name, forms[name])
                continue
            target = self.options.outputs[name]
            if name not in self._spools:
                self._spools[name] = self.drafts.spool(target)
            with writing(target):
                self._spools[name].write(forms[name])
            self._sizes.setdefault(name, []).append(len(forms[name]))
        if self.options.split is not None:
            self._keys.append(line.keys)
            self._types.append(line.types)

    def finish(self) -> None:
        """Sort the records of a split into training and validation, and end each output.

        Raises:
            PrepareError: all records belong to one series.
            WriteError: a record cannot be written.
        """
        if self.options.split is not None:
            validates, groups = choose_validation(self._keys, self._types, self.options.split, self.options.seed)
            self.split = {"groups": groups, "types": _sides(self._types, validates)}
            if not any(validates):
                raise PrepareError(
                    "--split: all records belong together by their series, so that none can be set apart for "
                    "validation; add records of other series, or leave out --split"
                )
            for name, spool in self._spools.items():
                with writing(self.options.outputs[name]):
                    spool.seek(0)
                for size, apart in zip(self._sizes[name], validates, strict=True):
                    self._write(f"{name}_val" if apart else name, spool.read(size))
        for name, file in self._files.items():
            with writing(self.options.outputs[name]):
                file.write(b"\n]\n" if _is_list(name) else b"\n")

    def _write(self, name: str, record: bytes) -> None:
        target = self.options.outputs[name]
        if name not in self._files:
            self._files[name] = self.drafts.open(target)
        before, between = (b"[\n", b",\n") if _is_list(name) else (b"", b"\n")
        with writing(target):
            self._files[name].write((between if self.written[name] else before) + record)
        self.written[name] += 1


def _sides(types: list[tuple[str, ...]], validates: list[bool]) -> dict[str, dict[str, int]]:
    sides = {
        side: Counter(kind for kinds, apart in zip(types, validates, strict=True) if apart is side for kind in kinds)
        for side in (False, True)
    }
    most = (sides[False] + sides[True]).most_common()
    return {kind: {"training": sides[False][kind], "validation": sides[True][kind]} for kind, _ in most}


def _is_list(name: str) -> bool:
    """Annotations are a JSON list, ChatTS records one a line."""
    return name.startswith("annotations")
