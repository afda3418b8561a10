"""What a long task shows while it lasts: a bar in a terminal, elsewhere a line for each tenth."""

import shutil
import sys
import time
from types import TracebackType

from tqdm import tqdm

clock, terminal_size = time.perf_counter, shutil.get_terminal_size  # tests have their own

WIDTH = 100  # at the most; a terminal may be narrower
LINE_SECONDS = 1.0  # between two lines, at the least


class Progress:
    """How much of a task is done, how long the rest takes, and a note.

    The time left is judged by what was done since the first `update`, for what comes before it waits for compilation.

    Args:
        what: the task.
        total: of its units.
        done: of them, before it starts.
        unit: what they are, such as "steps".
    """

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "steps"):
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.first: tuple[float, int] | None = None
        self.line_at, self.tenth = clock(), 10 * done // max(total, 1)
        layout = "{desc} {percentage:3.0f}%|{bar}| {n:,}/{total:,} {unit}{postfix}"
        columns = min(WIDTH, terminal_size().columns)
        options = {"desc": what, "unit": unit, "ncols": columns, "bar_format": layout, "mininterval": 0.2}
        self.bar = tqdm(total=total, initial=done, leave=False, **options) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        """Itself."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def update(self, number: int = 1, note: str = "") -> None:
        """So many more units are done; `note` says how it goes."""
        self.done += number
        notes = ", ".join(words for words in (self.left(), note) if words)
        if self.bar is not None:
            self.bar.set_postfix_str(notes, refresh=False)
            self.bar.update(number)
            return
        tenth, now = 10 * self.done // max(self.total, 1), clock()
        if tenth > self.tenth and now - self.line_at >= LINE_SECONDS:
            self.line_at, self.tenth = now, tenth
            share = f"{self.done / self.total:4.0%}"
            words = ", ".join(words for words in (f"{self.done:,}/{self.total:,} {self.unit}", notes) if words)
            print(f"{self.what} {share}  {words}", file=sys.stderr, flush=True)

    def left(self) -> str:
        """The time that the rest takes, in words; none where nothing is known of it."""
        now = clock()
        if self.first is None:
            self.first = (now, self.done)
            return ""
        start, before = self.first
        if self.done == before or self.done >= self.total:
            return ""
        return f"{tqdm.format_interval((now - start) / (self.done - before) * (self.total - self.done))} left"
