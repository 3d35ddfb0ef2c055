from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.files import image, jpeg, karpathy, names, write, write_tar
from training.data import DataError, Picture, hold_out, read


@given(st.permutations(range(30)), st.integers(0, 30), st.integers(0, 5))
def test_holding_out_depends_on_names_and_seed_alone(order: list[int], count: int, seed: int) -> None:
    pictures = [Picture(f"{i}.jpg", ("a",), "train" if i < 25 else "test", "s", Path(f"{i}")) for i in range(30)]
    if count > 25:
        with pytest.raises(DataError, match="cannot hold out"):
            hold_out(pictures, count, seed)
        return
    held = hold_out(pictures, count, seed)
    again = hold_out([pictures[i] for i in order], count, seed)
    assert [p.name for p in held] == [p.name for p in pictures]
    assert sum(p.split == "val" for p in held) == count
    assert sum(p.split == "test" for p in held) == 5
    assert set(held) == set(again)


def test_another_seed_holds_out_others() -> None:
    pictures = [Picture(f"{i}.jpg", ("a",), "train", "s", Path(f"{i}")) for i in range(100)]
    one, two = ({p.name for p in hold_out(pictures, 30, seed) if p.split == "val"} for seed in (1, 2))
    assert one != two


def test_the_same_picture_in_two_parts_is_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    twins = {"a.jpg": "train", "b.jpg": "val", "c.jpg": "test", "d.jpg": "train"}
    pair = {"e.jpg": "train", "f.jpg": "train"}  # twice in one part is no harm
    for name in twins:
        write(tmp_path / "set" / name, jpeg(comment="same"))
    for name in pair:
        write(tmp_path / "set" / name, jpeg(comment="pair"))
    write(tmp_path / "set" / "g.jpg", jpeg(comment="soma"))  # of the same size
    splits = {**twins, **pair, "g.jpg": "val"}
    write(tmp_path / "set" / "dataset.json", karpathy(*(image(name, split) for name, split in splits.items())))
    write(tmp_path / "more" / "dataset.json", karpathy(image("x.jpg"), image("y.jpg")))
    write_tar(tmp_path / "more" / "i.tar", {"x.jpg": jpeg(comment="soma"), "y.jpg": jpeg()})
    data = read(tmp_path / "set", tmp_path / "more")
    assert [names(data, split) for split in ("train", "val", "test")] == [
        ["e.jpg", "f.jpg", "y.jpg"], ["g.jpg"], ["c.jpg"],
    ]  # fmt: skip
    assert data.skipped == {"twin held out": 4}
    assert "the same picture lies in several parts, such as a.jpg (train of set) and c.jpg (test of set)" in caplog.text


def test_with_no_validation_part_anywhere_a_tenth_of_the_first_set_is_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, count in (("first", 41), ("second", 20)):
        write(tmp_path / name / "dataset.json", karpathy(*(image(f"{i}.jpg") for i in range(count))))
        write_tar(tmp_path / name / "images.tar", {f"{i}.jpg": jpeg() for i in range(count)})
    data = read(tmp_path / "first", tmp_path / "second")
    assert [p.source for p in data.split("val")] == ["first"] * 5
    assert [p.source for p in data.split("train")] == ["first"] * 36 + ["second"] * 20
    assert "5 of the 41 training pictures of first are held out for it" in caplog.text
    assert data.split("val") == read(f"{tmp_path / 'first'}:val=5").split("val")
    only = read(tmp_path / "first", f"{tmp_path / 'second'}:val=2")
    assert [p.source for p in only.split("val")] == ["second"] * 2
