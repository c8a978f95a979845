"""Options: what one run of `prepare` is asked to do, checked before any work."""

from dataclasses import dataclass, fields
from pathlib import Path

from llamafactory_ext.errors import FaultError, UsageError
from llamafactory_ext.gdsh import TableOptions, normal_types


SMALLEST = 8  # points that a thinned series must be allowed: fewer have no shape left


class PrepareError(FaultError, RuntimeError):
    """The run came to an end that is no fault of a single record; the outputs are as they were before."""


@dataclass(frozen=True)
class Options:
    """One run. `llamafactory-ext prepare --help` says what each option is for."""

    root: Path | None = None
    json: tuple[Path, ...] = ()
    series: tuple[Path, ...] = ()
    out: Path | None = None
    annotations: Path | None = None
    report: Path | None = None
    register: Path | None = None
    force: bool = False
    merge_points: bool = False
    max_points: int | None = None
    window: int | None = None
    stride: int | None = None
    normal_windows: int | None = None
    """None: all windows without anomaly are kept; else at most so many a point, 0 for none."""
    compact_answers: bool = False
    max_answer_chars: int | None = None
    drop_answers_with: tuple[str, ...] = ()
    drop_faulty: bool = False
    golden: Path | None = None
    """ChatTS records that models are compared by: their series are in no output."""
    split: float | None = None
    seed: int = 0
    workers: int = 1
    normal_types: tuple[str, ...] = ()
    value_column: str | None = None
    quality_column: str | None = None
    missing_values: tuple[str, ...] = ()
    allow_filled_labels: bool = False

    @property
    def table(self) -> TableOptions:
        """How CSV files are read."""
        return TableOptions(self.value_column, self.quality_column, self.missing_values)

    @property
    def normal(self) -> frozenset[str]:
        """Types that mean the normal state."""
        return normal_types(self.normal_types)

    @property
    def rewrites_answers(self) -> bool:
        """Whether answers are taken apart and written anew, instead of being passed on once they are valid."""
        return self.merge_points or self.compact_answers or self.max_points is not None or self.window is not None

    @property
    def outputs(self) -> dict[str, Path]:
        """The files to be written, by what they hold: `out`, `out_val`, `annotations`, `annotations_val`."""
        found = {name: path for name, path in (("out", self.out), ("annotations", self.annotations)) if path}
        if self.split is not None:
            found |= {f"{name}_val": path.with_stem(f"{path.stem}_val") for name, path in found.items()}
        return found

    def as_dict(self) -> dict[str, object]:
        """The options in plain types, for the report."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def check_options(options: Options) -> None:
    """Check what can be said without looking at any file.

    Raises:
        UsageError: an option is out of its range, contradicts another, or needs one that is missing.
    """
    _check_files(options)
    _check_numbers(options)
    if options.annotations and (options.max_points is not None or options.window is not None):
        raise UsageError(
            "--annotations cannot go with --max-points or --window: annotations point to the CSV files, which stay as "
            "they are, and the intervals would no longer fit them; use --out, whose records carry their series"
        )
    if options.register and not options.register.name.endswith(".json"):
        raise UsageError(f"--register needs a dataset_info.json, not {str(options.register)!r}")
    if options.force and not options.register:
        raise UsageError("--force replaces an entry of dataset_info.json: it needs --register")
    if any(not text for text in options.drop_answers_with):
        raise UsageError("--drop-answers-with needs a text: an empty one is in every answer")


def _check_files(options: Options) -> None:
    if not options.out and not options.annotations:
        raise UsageError("nothing to write: name --out TRAIN.jsonl, --annotations CLEAN.json, or both")
    if options.root is None and not options.json:
        raise UsageError(
            "no data: name ROOT, the folder with json/ and timeseries/, or a file of ChatTS records, or both --json "
            "and --series"
        )
    if options.golden and not options.golden.is_file():
        raise UsageError(f"--golden {str(options.golden)!r} is no file; expected ChatTS records")
    written = [*options.outputs.values(), options.report, options.register]
    taken: dict[Path, Path] = {}
    for path in (path for path in written if path):
        real = path.resolve()
        if real in taken:
            raise UsageError(f"{str(path)!r} would be written twice; give each output a file of its own")
        taken[real] = path
        if real.is_dir():
            raise UsageError(f"{str(path)!r} is a folder; expected the name of a file")


def _check_numbers(options: Options) -> None:
    if options.max_points is not None and options.max_points < SMALLEST:
        raise UsageError(f"--max-points {options.max_points} is too small; expected {SMALLEST} or more")
    if options.window is None and (options.stride is not None or options.normal_windows is not None):
        raise UsageError("--stride and --normal-windows say how windows are cut: they need --window")
    if options.window is not None:
        if options.window < 1:
            raise UsageError(f"--window {options.window} is too small; expected 1 or more rows")
        if options.stride is not None and not 1 <= options.stride <= options.window:
            raise UsageError(
                f"--stride {options.stride} does not fit --window {options.window}; expected 1 to {options.window}: "
                "a longer one would leave rows out"
            )
    if options.normal_windows is not None and options.normal_windows < 0:
        raise UsageError(f"--normal-windows {options.normal_windows}: expected all, none, or a number")
    if options.max_answer_chars is not None and options.max_answer_chars < 1:
        raise UsageError(f"--max-answer-chars {options.max_answer_chars}: expected 1 or more")
    if options.split is not None and not 0 < options.split < 1:
        raise UsageError(f"--split {options.split}: expected a fraction between 0 and 1, such as 0.1")
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: expected 1 or more")


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
