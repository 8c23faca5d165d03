"""Every command of every page runs, in order, at the scale that its page states."""

import pytest
from doc_names import ROOT
from page_runner import BlockError, open_workplace
from pages import Block, PageError, blocks_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    with open_workplace(tmp_path_factory.mktemp("docs")) as opened:
        yield opened


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_a_page_run(page, workplace):
    blocks = blocks_of(page)
    to_do = [block for block in blocks if block.language in ("bash", "python", "gin")]
    if to_do:
        folder = workplace.page(page.stem)
        for block in to_do:
            workplace.run(block, folder)


def write_page(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    return page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```\nls\n```\n", "no language"),
        ("```text\nul2 train\n```\n", "holds a command"),
        ("```gin\nA = 1\n```\n", "title it"),
        ("```bash\nls\n", "no end"),
        ("<!-- instead: parse -->\n```bash\nls\n```\n", "why"),
        ("<!-- instead: skip; slow -->\n```bash\nls\n```\n", "parse|check|syntax"),
        ("<!-- todo -->\n```bash\nls\n```\n", "no directive"),
        ("<!-- exit: 2 -->\n", "nothing follows"),
    ],
)
def test_block_that_would_be_skipped_is_refused(text, message, tmp_path):
    with pytest.raises(PageError, match=message.replace("|", r"\|")):
        blocks_of(write_page(tmp_path, text))


def test_replacement_of_what_is_not_there_is_refused():
    block = Block(1, "bash", "", "ls\n", replaced=[("cat", "dog")])
    with pytest.raises(PageError, match="has no 'cat'"):
        _ = block.to_run


@pytest.mark.parametrize(
    "block",
    [
        Block(1, "bash", "", "ul2 train --gin_file=configs/models/none.gin\n"),
        Block(1, "bash", "", "false\ntrue\n"),
        Block(1, "bash", "", "ul2 check | cat\n"),
        Block(1, "bash", "", "true\n", exit_code=2),
        Block(1, "bash", "", "echo yes\n", says="no"),
        Block(1, "bash", "", "scripts/none.sh\n", instead="syntax"),
        Block(1, "bash", "", "ul2 train --gin.NONE=1\n", instead="parse"),
        Block(1, "bash", "", "ul2 plan\n", instead="parse"),
        Block(1, "bash", "", "for a in b; do\n", instead="syntax"),
        Block(1, "python", "", "assert 1 == 2\n"),
    ],
)
def test_block_that_fails_fails_its_page(block, workplace, tmp_path):
    with pytest.raises(BlockError, match="line 1"):
        workplace.run(block, tmp_path)


def test_blocks_of_a_page_share_files_and_names(workplace, tmp_path):
    page = write_page(
        tmp_path,
        '```python title="mine.py"\nVALUE = 3\n```\n'
        "```python\nfrom mine import VALUE\n```\n"
        "<!-- toy: 4 => 3 -->\n```python\nassert VALUE == 4\n```\n"
        "<!-- toy ul2 infer: --max_tokens 2 -->\n"
        "```bash\nul2 infer --checkpoint runs/one --text 'a ___' --json"
        " | tail -n 1 > out\n```\n"
        "```python\nimport json; assert json.load(open('out'))['rows'] == 1\n```\n",
    )
    folder = workplace.page("shared")
    for block in blocks_of(page):
        workplace.run(block, folder)
    assert (folder / "mine.py").read_text() == "VALUE = 3\n"
