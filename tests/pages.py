"""What the tests of the pages and of the site read in Markdown: blocks of code, headings, links."""

import re

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(text):
    """The blocks of code, as (language, code)."""
    return [
        (language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)) for indent, language, code in BLOCK.findall(text)
    ]


def anchors(text):
    """The anchors of the headings, as a browser of Markdown makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text):
    """What is linked to, or shown: the targets without an address on the network."""
    text = BLOCK.sub("", text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [target for target in targets if not target.startswith(("http://", "https://", "mailto:"))]
