"""Docstrings for the site: plain text keeps its asterisks, as in shapes such as (*batch, latent_dim)."""

import re

import griffe


class PlainAsterisks(griffe.Extension):
    """Escapes what Markdown would take for emphasis, outside code and examples."""

    def on_instance(self, *, obj, **kwargs):
        """Every object of the package, once."""
        if obj.docstring:
            lines = obj.docstring.value.splitlines()
            obj.docstring.value = "\n".join(line if line.lstrip().startswith((">>>", "...")) else plain(line) for line in lines)


def plain(line):
    """The line with asterisks outside backticks escaped."""
    return re.sub(r"(`[^`]*`)|\*", lambda found: found[1] or r"\*", line)
