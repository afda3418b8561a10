"""Docstrings for the site: plain text keeps its asterisks, as in shapes such as (*batch, latent_dim)."""

import re

import griffe


class PlainAsterisks(griffe.Extension):
    """Escapes what Markdown would take for emphasis, outside code and examples."""

    def on_instance(self, *, obj, **kwargs):
        """Every object of the package, once."""
        if obj.docstring:
            obj.docstring.value = "\n".join(plain(line) for line in obj.docstring.value.splitlines())


def plain(line):
    """The line with its asterisks escaped, but those in backticks and in examples."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    return re.sub(r"(`[^`]*`)|\*", lambda found: found[1] or r"\*", line)
