"""Docstrings for the site: their examples as blocks of code, and their text plain, as in the shape (*batch, latent)."""

import re

import griffe

# From the first line of an example to the next blank line, or the end.
EXAMPLE = re.compile(r"^( *)>>> .*?(?=^\s*$|\Z)", re.MULTILINE | re.DOTALL)


class AsMarkdown(griffe.Extension):
    """Makes Markdown of each docstring."""

    def on_instance(self, *, obj, **kwargs):
        """Every object of the package, once."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring):
    """The docstring with its examples fenced, and asterisks outside of code escaped."""
    parts, end = [], 0
    for example in EXAMPLE.finditer(docstring):
        indent = example[1]
        parts += [plain(docstring[end : example.start()]), f"{indent}```pycon\n{example[0].rstrip()}\n{indent}```\n"]
        end = example.end()
    return "".join([*parts, plain(docstring[end:])])


def plain(text):
    """The text with its asterisks escaped, but those in backticks and of an argument's name."""
    return re.sub(r"(`[^`]*`|^ *\*+\w+:)|\*", lambda found: found[1] or r"\*", text, flags=re.MULTILINE)
