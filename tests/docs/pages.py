"""Pages of the documentation, taken apart: fenced blocks and how each is run.

A block of `bash` or `python` is run as it stands, in the order of the page, in one
directory. What cannot be run as it stands says so in the page's source, in a comment in
front of it:

    <!-- toy ul2 train: --gin.SEED=1 -->  from here on, put behind every `ul2 train`
    <!-- toy: 10000 => 2; /mnt => a -->   in the next block, A is written as B
    <!-- exit: 2 -->                      the next block ends with this exit code
    <!-- says: no such file -->           and writes this, on one line
    <!-- instead: parse; needs a pod -->  the next block's `ul2` commands are parsed,
                                          their files and names looked up
    <!-- instead: check; takes hours -->  `ul2 train` there is run as `ul2 check`
    <!-- instead: syntax; is a pod's -->  the next block is read by bash (or Python)
    <!-- needs: torch -->                 without it the next block is only read
    <!-- setup                            run, and shown to nobody
    printf 'a\n' > file.txt
    -->

A block with a title, `python title="mine.py"`, is a file of that name; one of `gin` has
to be one. Blocks of `text`, `json` and `yaml` show something, and hold no command.
Between `<!-- table: NAME -->` and `<!-- end -->` a test of its own writes.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SHOWN: Final = ("text", "json", "yaml")
INSTEAD: Final = ("parse", "check", "syntax")
_FENCE: Final = re.compile(r"^(?P<indent> *)```(?P<info>[^`]*)$")
_COMMAND: Final = re.compile(
    r"^\s*(\$ |ul2 |pip |python |scripts/|docker |bash |export |mkdocs )", re.MULTILINE
)


class PageError(ValueError):
    """What is wrong with a page, with its line."""


@dataclasses.dataclass
class Block:
    """A fenced block.

    Attributes:
        line: of its fence in the page.
        language: of its text.
        title: name of the file that it is; empty for one that is run.
        text: as a reader sees it.
        replaced: what to write in it before it is run.
        instead: what is done in place of running it; empty for running it.
        needs: modules without which it is only read.
        exit_code: that running it ends with.
        says: what it writes; empty for anything.
        toys: flags behind every command of a name, `ul2 train`.
    """

    line: int
    language: str
    title: str
    text: str
    replaced: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    instead: str = ""
    needs: list[str] = dataclasses.field(default_factory=list)
    exit_code: int = 0
    says: str = ""
    toys: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def to_run(self) -> str:
        """The text with everything replaced."""
        text = self.text
        for old, new in self.replaced:
            if old not in text:
                raise PageError(f"line {self.line}: the block has no {old!r}.")
            text = text.replace(old, new)
        return text


def blocks_of(page: Path) -> list[Block]:
    """Returns the blocks of a page, in order.

    Raises:
        PageError: a comment is no directive, or a block is of no known kind.
    """
    blocks: list[Block] = []
    toys: dict[str, str] = {}
    pending: list[tuple[int, str, str]] = []
    for line, kind, text in _pieces(page.read_text()):
        if kind == "comment":
            if _set_toys(text, toys):
                continue
            name, _, rest = text.partition(":")
            if name in ("table", "end", "names of others"):
                continue
            if name.startswith("setup"):
                body = text.removeprefix("setup")
                blocks.append(Block(line, "bash", "", body, toys=dict(toys)))
            else:
                pending.append((line, name.strip(), rest.strip()))
            continue
        language, _, info = kind.partition(" ")
        title = re.search(r'title="([^"]+)"', info)
        block = Block(line, language, title[1] if title else "", text, toys=dict(toys))
        for where, name, rest in pending:
            _apply(block, where, name, rest)
        pending = []
        _check(block)
        blocks.append(block)
    if pending:
        raise PageError(f"line {pending[0][0]}: nothing follows this comment.")
    return blocks


def _pieces(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line, "comment" or the info of a fence, text)."""
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if line.lstrip().startswith("<!--"):
            start, body = number, line
            while "-->" not in body:
                body += "\n" + next(lines)[1]
            yield start, "comment", body.strip()[4:].partition("-->")[0].strip()
        elif fence := _FENCE.match(line):
            indent, body = fence["indent"], ""
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                body += inner.removeprefix(indent) + "\n"
            else:
                raise PageError(f"line {number}: this block has no end.")
            yield number, fence["info"].strip(), body


def _set_toys(text: str, toys: dict[str, str]) -> bool:
    """Notes the flags of `toy ul2 a, b: FLAGS`; returns whether it is that."""
    found = re.fullmatch(r"toy (ul2 [a-z, ]+):(.*)", text, re.DOTALL)
    if found:
        for name in found[1].removeprefix("ul2 ").split(","):
            toys[f"ul2 {name.strip()}"] = " ".join(found[2].split())
    return found is not None


def _apply(block: Block, line: int, name: str, rest: str) -> None:
    """Applies one directive to the block behind it."""
    if name == "toy":
        for pair in rest.split(";"):
            old, arrow, new = pair.partition("=>")
            if not arrow:
                raise PageError(f"line {line}: write `A => B`.")
            block.replaced.append((old.strip(), new.strip()))
    elif name == "exit":
        block.exit_code = int(rest)
    elif name == "says":
        block.says = rest
    elif name == "needs":
        block.needs = rest.split()
    elif name == "instead":
        block.instead, _, why = rest.partition(";")
        if block.instead not in INSTEAD or not why.strip():
            raise PageError(f"line {line}: write `instead: {'|'.join(INSTEAD)}; why`.")
    else:
        raise PageError(f"line {line}: {name!r} is no directive.")


def _check(block: Block) -> None:
    """Refuses a block that nothing would be done with."""
    if block.language in SHOWN:
        if block.title == "" and _COMMAND.search(block.text):
            raise PageError(f"line {block.line}: this block holds a command.")
    elif block.language == "gin":
        if not block.title:
            raise PageError(f"line {block.line}: a block of gin is a file; title it.")
    elif block.language not in ("bash", "python"):
        raise PageError(
            f"line {block.line}: a block of {block.language or 'no language'}; it is "
            f"one of bash, python, gin, {', '.join(SHOWN)}."
        )
