"""docs/effects.md and the status tell what the table of seams says."""

from conftest import ROOT

from llamafactory_ext.plugin.seams import SEAMS


def table() -> list[str]:
    """The rows that docs/effects.md must have; ``python tests/plugin/test_effects.py`` prints them."""
    rows = ["| where | why | which runs |", "|---|---|---|"]
    for seam in SEAMS:
        name = seam.target.removeprefix("llamafactory.")
        rows.append(f"| `{name}`{' (public)' if seam.public else ''} | {seam.reason} | {seam.runs} |")
    return rows


def test_effects_has_every_seam_as_the_table_has_it() -> None:
    text = (ROOT / "docs" / "effects.md").read_text("utf-8")
    assert [line for line in text.splitlines() if line in table()] == table()


def test_every_seam_says_which_runs_it_changes() -> None:
    assert all(seam.runs for seam in SEAMS)


if __name__ == "__main__":
    print("\n".join(table()))
