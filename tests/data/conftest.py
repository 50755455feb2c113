from pathlib import Path

import pytest


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A recipe's folder with a corpus of 30 documents."""
    (tmp_path / "corpus").mkdir()
    for i in range(30):
        (tmp_path / "corpus" / f"{i:02}.txt").write_text(f"Document {i} of the corpus, naïve ☃.\n" * (i + 1), "utf-8")
    return tmp_path
