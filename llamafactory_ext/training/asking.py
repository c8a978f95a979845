"""How a data set's records ask goes with what is trained on them, so that detect asks the same way."""

import json
from pathlib import Path
from typing import Any

from llamafactory.extras import logging

from llamafactory_ext.files import write_whole
from llamafactory_ext.gdsh.prompts import ASKING, asking_beside
from llamafactory_ext.training.whole_checkpoints import read_json


logger = logging.get_logger("llamafactory.ext")


def write_asking(folder: Path, data_args: Any) -> None:
    """Copies how the data set's records ask, which `prepare` left beside it, for `llamafactory-ext detect`.

    Of several data sets it is the first one's; those that ask otherwise are named in it, and in the log.
    """
    info = read_json(Path(str(data_args.dataset_dir), "dataset_info.json"))
    found: dict[str, dict[str, Any]] = {}
    for name in data_args.dataset or ():
        entry = info.get(name)
        file = entry.get("file_name") if isinstance(entry, dict) else None
        if file and (asking := asking_beside(Path(str(data_args.dataset_dir), str(file)))).is_file():
            found[name] = read_json(asking)
    if not found:
        return
    first, *more = found
    ways = {name: {key: value for key, value in found[name].items() if key != "types"} for name in found}
    others = [name for name in more if ways[name] != ways[first]]
    if others:
        logger.warning_rank0(
            f"{', '.join(others)}: asked otherwise than {first} (prompt, windows or thinning). `llamafactory-ext "
            f"detect` asks as {first} does: name the data set first that is like what it will meet."
        )
    said = found[first] | ({"others": others} if others else {})
    write_whole(folder / ASKING, [json.dumps(said, ensure_ascii=False, indent=1), "\n"])
