"""Every flag, macro, file, task and preset that a page names is there."""

import re

import pytest
from doc_names import ROOT, flags, is_task, macros
from pages import blocks_of
from test_doc_pages import PAGES

from ul2.interop.presets import PRESETS

_TABLE = re.compile(r"<!-- table: .*?<!-- end -->", re.DOTALL)
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_MACRO = re.compile(r"(?<![\w.<{/\[-])[A-Z][A-Z0-9_]{3,}(?![\w./=]|\()")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
_PATH = re.compile(
    r"(?<![\w/.])(?:ul2|configs|scripts|tests|benchmarks|docker|examples|docs)"
    r"/[\w./*{},-]*[\w*}]"
)
# Places that a reader fills in, and directories of a run.
_PLACES = {
    *("FLAGS", "NAME", "NAMES", "STORE", "FILE", "FILES", "PATH", "FOLDER", "VALUE"),
    *(
        "SIZE",
        "COMMAND",
        "EXTRAS",
        "MODULE",
        "SIGTERM",
        "SIGKILL",
        "SIGSTOP",
        "SIGABRT",
    ),
    *("CHANGELOG", "ARCHITECTURE", "CONTRIBUTING", "README", "PYTHONPATH", "LICENSE"),
}
_TASK_FAMILIES = ("super_glue", "glue_", "gsm8k", "squad", "mmlu", "xsum", "svamp")


def spans(page):
    """Returns what stands between backticks, but for what a test of its own writes."""
    return _SPAN.findall(_TABLE.sub("", _FENCED.sub("", page.read_text())))


def of_others(page):
    """Returns names of other programs that a page says are such."""
    found = re.findall(r"<!-- names of others: (.*?) -->", page.read_text(), re.DOTALL)
    return set(" ".join(found).split())


def unknown_names(page):
    """Returns what a page names and nothing is called."""
    text = _TABLE.sub("", page.read_text())
    others = of_others(page)
    unknown = []
    for span in spans(page):
        names = set(_MACRO.findall(span)) - macros() - _PLACES - others
        unknown += [name for name in names if not name.startswith(("UL2_", "JAX_"))]
        unknown += [flag for flag in _FLAG.findall(span) if not is_flag(flag)]
        for word in re.findall(r"[a-z][a-z0-9_]+\*?", span):
            if word.startswith(_TASK_FAMILIES) and not word.endswith("*"):
                unknown += [] if is_task(word) or word in others else [word]
    for path in set(_PATH.findall(text)):
        unknown += [] if any(path_exists(one) for one in expand(path)) else [path]
    for block in blocks_of(page):
        if block.language == "bash":
            given = re.findall(r"--gin\.([A-Z][A-Z0-9_]*)=", block.text)
            unknown += [name for name in given if name not in macros() | others]
            for preset in re.findall(r"--preset (\w+)", block.text):
                unknown += [] if preset in PRESETS else [preset]
    return unknown


def is_flag(flag):
    return flag in flags() or flag in ("--gin", "--help", "--peers", "--editable")


def expand(path):
    """configs/{a,b}.gin -> configs/a.gin, configs/b.gin"""
    found = re.search(r"\{([^}]*)\}", path)
    if not found:
        return [path]
    return [path.replace(found[0], one) for one in found[1].split(",")]


def path_exists(path):
    return any(ROOT.glob(path)) or (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_on_a_page_are_there(page):
    assert unknown_names(page) == []


@pytest.mark.parametrize(
    "text",
    [
        "`BATCH_SIZES = 3`",
        "`--checkpoints`",
        "`configs/models/none.gin`",
        "`super_glue_bool`",
        "see scripts/none.sh",
        "<!-- instead: syntax; x -->\n```bash\nul2 train --gin.NONE=1\n```",
        "<!-- instead: syntax; x -->\n```bash\nul2 convert a --preset t6\n```",
    ],
)
def test_name_of_nothing_is_found(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text}\n")
    assert len(unknown_names(page)) == 1
