"""Published tables, ours beside theirs: `python experiments/reproduce.py --help`."""

import dataclasses
import difflib
import math
from typing import Literal

import tyro

from engines.harness import command_line
from engines.reproduce.cases import CASES, Case
from engines.reproduce.published import TABLES, Row, Table

CERTIFICATES = "certificates"

# Options that a table does not look at.
EVALUATION = ("eval_samples", "test_examples")
NO_EFFECT = {CERTIFICATES: ("dataset", "seeds", "minutes", "recipe", *EVALUATION), "hinton": ("eval_samples",)}
NO_EFFECT |= dict.fromkeys(("ppca", "rodeo", "disarm", "relax"), EVALUATION)


@dataclasses.dataclass(frozen=True)
class Config(command_line.DataOptions):
    """Options of a run. Every one of them is written to config.json."""

    dataset: str = ""
    """Train on another set than the rows', such as digits for a trial; there is then nothing to compare with."""
    table: str = "iwae"
    """Whose numbers: iwae (Burda 2015), exemplar (Norouzi 2020: Gaussian and VampPrior), miwae (pythae's cards), ppca
    (Lucas 2019), hinton (Hinton 2006: codes of 30 numbers), lagging (He 2019: text); of Bernoulli latents
    rodeo (Shi 2022: variances), disarm (training ELBOs of the same) and relax (Grathwohl 2018). certificates is of
    nobody: the mean gradient of each estimator against the exact one."""
    rows: tuple[str, ...] = ()
    """Which rows, by name or by its beginning; by default all."""
    seeds: int = 1
    """Runs of each row."""
    minutes: float = 20.0
    """Of training for each run. The published recipe stops there; ours is as long as that from the start."""
    recipe: Literal["published", "ours"] = "ours"
    """The settings of those who published the row, or ours."""
    eval_samples: int = 5000
    """K of the test log p(x)."""
    test_examples: int = 10_000
    """Test images, the first of them."""
    runs_dir: str = "runs"
    """Where runs are kept."""
    name: str | None = None
    """Folder of this run in runs_dir; by default reproduce-TABLE, with a number if it is taken."""
    resume: bool = False
    """Continue the run of that name (by default the newest of this table), each row from its last checkpoint."""

    @property
    def of_table(self) -> Table:
        """The table."""
        return TABLES[self.table]

    @property
    def chosen(self) -> tuple[Row, ...]:
        """The rows."""
        return tuple(row for row in self.of_table.rows if self.is_chosen(row.name))

    @property
    def chosen_cases(self) -> tuple[Case, ...]:
        """Those of the table certificates."""
        return tuple(case for case in CASES if self.is_chosen(case.row))

    @property
    def in_words(self) -> str:
        """What is going to be measured."""
        if self.table == CERTIFICATES:
            return f"certificates of {len(self.chosen_cases)} gradients"
        return ", ".join(row.name for row in self.chosen)

    def is_chosen(self, name: str) -> bool:
        """Whether --rows names it, or none."""
        return not self.rows or any(name.startswith(given) for given in self.rows)


def parse(args: list[str]) -> Config:
    """The configuration from the command line.

    Raises:
        ValueError: if a table or a row is unknown, a number is out of range, or the settings of a row are not known.
    """
    config = tyro.cli(Config, description="Published tables, ours beside theirs.", args=args)
    command_line.chosen("table", (config.table,), (*TABLES, CERTIFICATES))
    is_certificates = config.table == CERTIFICATES
    known = tuple(case.row for case in CASES) if is_certificates else tuple(row.name for row in config.of_table.rows)
    for given in config.rows:
        if not any(name.startswith(given) for name in known):
            near = difflib.get_close_matches(given, known, 3, 0.3)
            advice = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"--rows: {given!r} is unknown; {advice}Known are {', '.join(known)}")
    if not 0 < config.minutes < math.inf:
        raise ValueError(f"--minutes must be a positive number; got {config.minutes}")
    for name in ("seeds", "eval_samples", "test_examples"):
        least = 2 if name == "test_examples" else 1
        if not least <= getattr(config, name) < 10**7:
            raise ValueError(
                f"{command_line.flag(name)} must be from {least} to below 10,000,000; got {getattr(config, name)}"
            )
    for name in NO_EFFECT.get(config.table, ()):
        if getattr(config, name) != getattr(Config, name):
            raise ValueError(f"{command_line.flag(name)} has no effect on --table {config.table}: leave it out")
    if is_certificates:
        return config
    if config.of_table.is_theirs:
        config = dataclasses.replace(config, recipe="published")
    unknown = [row.name for row in config.chosen if row.settings is None]
    if config.recipe == "published" and unknown:
        raise ValueError(f"--recipe published needs rows whose settings are known; got {', '.join(unknown)}")
    return config
