from __future__ import annotations

from benchmarks.subject import same_captions


def test_captions_are_compared_picture_by_picture() -> None:
    texts = {"full": ["a", "b", "c"], "small": ["a", "c", "b"], "other": ["a", "b", "x"]}
    assert same_captions(texts, "full") == {"full": 3, "small": 1, "other": 2}
