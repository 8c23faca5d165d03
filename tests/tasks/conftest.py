import pytest

from ul2.tasks.tokenizer import open_tokenizer, train_tokenizer

TEXTS = [
    f"Chapter {i}. "
    + f"It was the {i}th day of a long journey, said she. " * (i % 7 + 1)
    for i in range(60)
]


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return open_tokenizer(train_tokenizer(TEXTS, 420, 32, path))
