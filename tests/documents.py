"""What a document says that can be wrong: its commands, its YAML, its links."""

import re
import shlex
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt

PUNCTUATION = set("();<>|&")
OPTIONAL = re.compile(r"\[(--[^\]]*)\]")
DRAWN = re.compile(r"[─│▲▼◄►→┃]")


class Document:
    """One Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text("utf-8")
        self._tokens = MarkdownIt("commonmark").enable("table").parse(self.text)

    @cached_property
    def blocks(self):
        """(language, text) of its code, fenced or indented."""
        kinds = ("fence", "code_block")
        return [(each.info, each.content) for each in self._tokens if each.type in kinds]

    @cached_property
    def spans(self):
        """Its code in running text."""
        return [each.content for each in self._inline if each.type == "code_inline"]

    @cached_property
    def links(self):
        """Targets, but for other sites."""
        targets = [each.attrGet("href") for each in self._inline if each.type == "link_open"]
        return [target for target in targets if "://" not in target]

    @cached_property
    def anchors(self):
        """Of its headings, as GitHub names them."""
        headings = [
            self._tokens[number + 1].content
            for number, each in enumerate(self._tokens)
            if each.type == "heading_open"
        ]
        return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}

    @property
    def _inline(self):
        return [child for each in self._tokens for child in each.children or ()]


def commands(text, program):
    """The program's arguments, for every place where a shell would start it."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = [] if DRAWN.search(line) else _words(line)
        for number, word in enumerate(words):
            if word.rpartition("/")[2] == program and _starts(words[:number]):
                rest = words[number + 1 :]
                end = next((n for n, each in enumerate(rest) if _separates(each)), len(rest))
                found.append([each for each in rest[:end] if each != "..."])
    return found


def _separates(word):
    return set(word) <= PUNCTUATION


def _starts(before):
    """Is it a command that comes after these words?"""
    last = before[-1] if before else ";"
    return last in {"--", "then", "do"} or (_separates(last) and last[-1] in ";|&(")


def _words(line):
    """As a shell splits it; nothing where it is none, or a quote goes on in the next line."""
    lexer = shlex.shlex(OPTIONAL.sub(r"\1", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return []
    comment = next((n for n, word in enumerate(words) if word.startswith("#")), len(words))
    return words[:comment]
