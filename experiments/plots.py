"""Draw the pictures of a run anew, from what it saved and nothing else: `python experiments/plots.py runs/NAME`."""

import json
import pathlib
import sys

from engines.harness import command_line


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw what the folder's run of any command saved. Returns the paths of the pictures.

    Raises:
        ValueError: if the folder holds no finished run.
    """
    from engines.collapse import pictures as collapse
    from engines.family import pictures as family
    from engines.gradients import pictures as gradients
    from engines.reproduce import pictures as reproduce
    from engines.train import pictures, population_pictures

    if (folder / "result.json").exists():
        return (pictures if (folder / "pictures.npz").exists() else population_pictures).draw(folder)
    if not (folder / "results.json").exists():
        raise ValueError(f"expected the folder of a finished run, runs/NAME; {folder} holds no result.json")
    if "table" in json.loads((folder / "results.json").read_text()):  # a published one
        return [reproduce.draw(folder)]
    # A comparison of gradients leaves no file for each part.
    return family.draw(folder) + collapse.draw(folder) or gradients.draw(folder)


def main() -> None:
    """Run the command line. Mistakes of the user end in one line and exit code 2."""
    with command_line.errors_in_one_line():
        if sys.argv[1:] in (["--help"], ["-h"]):
            print(__doc__)
            return
        if len(sys.argv) != 2:
            raise ValueError(f"expected one folder: python experiments/plots.py runs/NAME; got {len(sys.argv) - 1}")
        for path in draw(pathlib.Path(sys.argv[1])):
            print(path)


if __name__ == "__main__":
    main()
