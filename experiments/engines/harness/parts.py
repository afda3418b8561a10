"""The parts of a command, one after another: each leaves its numbers, arrays and pictures, and is done once."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from engines.harness import command_line, part_tables, run_folder
from engines.harness.rows import Result


def run(
    config: Any,
    stem: str,
    parts: Mapping[str, Callable[[Any], Result]],
    setting_of: Callable[[Any, pathlib.Path], Any],
    draw: Callable[[pathlib.Path], list[pathlib.Path]],
) -> None:
    """Run the parts that are not done yet, then write the table of all that are.

    Args:
        config: options of the command, with `parts`, `effort`, `runs_dir`, `name` and `resume`.
        stem: of the folder's name, if none is given.
        parts: `setting -> Result` of each part.
        setting_of: `(config, folder) -> setting`, which a part works on, with `description`, a line about the data.
        draw: draws every picture of the parts that are done in a folder.
    """
    folder = run_folder.choose_folder(config.runs_dir, config.name, stem, config.resume)
    if config.resume:
        run_folder.claim(folder)
    run_folder.check_same_options(folder, command_line.compared(config, ("parts",)))
    setting = setting_of(config, folder)
    folder.mkdir(parents=True, exist_ok=config.resume)
    if not config.resume:
        run_folder.claim(folder)
    done = [name for name in parts if (folder / f"{name}.json").exists()]
    named = [name for name in parts if name in done or name in config.parts]
    run_folder.write_json(folder / "config.json", dataclasses.asdict(config) | {"parts": named})
    print(f"{setting.description}; leaves everything in {folder}")
    for name in config.parts:
        if (folder / f"{name}.json").exists():
            print(f"{name}: done before")
            continue
        start = time.perf_counter()
        result = parts[name](setting)
        seconds = time.perf_counter() - start
        run_folder.write_arrays(folder / f"{name}.npz", **result.arrays)
        # The last thing of a part: that it is there says that the part is done.
        run_folder.write_json(folder / f"{name}.json", {"rows": result.rows, "seconds": seconds})
        print(f"{name}: {seconds:.0f} s")
    results = gathered(config, parts, folder)
    run_folder.write_json(folder / "results.json", results)
    (folder / "table.md").write_text(part_tables.markdown(results))
    drawn = draw(folder)
    if config.effort != 1:
        print(f"\n{part_tables.warning(results)}")
    print(f"\n{part_tables.terminal(results)}")
    pictures = ", ".join(path.name for path in drawn)
    print(f"\nNumbers are in {folder}, in results.json, and with notes on each in table.md; pictures: {pictures}")


def gathered(config: Any, parts: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """The rows of every part that is done, each with the name of its part, and the seconds of each."""
    rows, seconds = [], {}
    for name in parts:
        path = folder / f"{name}.json"
        if path.exists():
            part = json.loads(path.read_text())
            rows += [{"part": name, **line} for line in part["rows"]]
            seconds[name] = part["seconds"]
    return {"dataset": config.dataset, "effort": config.effort, "rows": rows, "seconds": seconds}
