"""Lists the licences of what `requirements.lock` installs.

    pip-licenses --format=json | python tools/licences.py requirements.lock > docs/licences.md

What a package says of itself, shortened where it gives the whole text; a person has to judge it.
"""

import json
import re
import sys
from pathlib import Path


def main() -> None:
    lock = Path(sys.argv[1]).read_text("utf-8")
    names = {name.lower() for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    print(
        "# Licences of the dependencies\n\nMade by `make licences`, of what `requirements.lock` installs on Linux.\n"
    )
    print("| package | version | licence, as the package says |\n|---|---|---|")
    for row in sorted(json.load(sys.stdin), key=lambda row: row["Name"].lower()):
        name = re.sub(r"[-_.]+", "-", row["Name"]).lower()
        if name in names:
            print(f"| {name} | {row['Version']} | {_first_line(row['License'])} |")
    uplot = "`llamafactory_ext/toolbox/pages/uplot/LICENSE`"
    print(f"\nWithin the package: uPlot 1.6.32 (MIT; {uplot}), which every page carries.")


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0].replace("|", "/") if text.strip() else "UNKNOWN"
    return line if len(line) <= 80 else line[:77] + "..."


if __name__ == "__main__":
    main()
