"""What `collapse.py` runs: its parts."""

from engines.collapse import em, gaps, pictures, text, trap, weights
from engines.collapse.config import Config
from engines.collapse.setting import setting_of
from engines.harness import parts

# `setting -> rows.Result` of each part.
PARTS = {"trap": trap.run, "text": text.run, "weights": weights.run, "gaps": gaps.run, "em": em.run}


def run(config: Config) -> None:
    """Run the parts that are not done yet, then write the table of all that are."""
    parts.run(config, f"collapse-{config.dataset}", PARTS, setting_of, pictures.draw)
