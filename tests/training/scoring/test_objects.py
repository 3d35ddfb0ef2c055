from pathlib import Path

import pytest

from training.scoring.objects import Objects, score_objects


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    file = tmp_path / "objects.txt"
    file.write_text("# animals\ndog dogs puppy\ncat cats\nhot-dog hotdog  # food\ntraffic-light\n")
    return Objects(file)


def test_words_of_one_kind_are_one_thing(objects: Objects) -> None:
    assert len(objects.named("A dog and its puppy.")) == 1
    assert len(objects.named("A dog and two cats.")) == 2
    assert objects.named("A tree.") == set()


def test_two_words_name_one_thing(objects: Objects) -> None:
    assert objects.named("A hot dog") == objects.named("one hotdog") != objects.named("a dog")
    assert len(objects.named("a traffic light and a dog")) == 2


def test_right_is_what_any_reference_names_and_there_what_two_name(objects: Objects) -> None:
    references = [["A dog.", "A puppy and a cat.", "An animal."], ["A cat.", "A tree.", "A cat sleeps."]]
    report = score_objects(["A cat and a hot dog.", "A dog."], references, objects)
    assert report.said.tolist() == [2, 1]
    assert report.right.tolist() == [1, 0]
    assert report.there.tolist() == [1, 1]  # the dog; the cat
    assert report.named.tolist() == [0, 0]
    assert report.precision == pytest.approx(100 / 3)
    assert report.recall == 0


def test_a_caption_that_names_nothing_makes_nothing_up(objects: Objects) -> None:
    report = score_objects(["A tree."], [["A dog.", "A dog."]], objects)
    assert (report.precision, report.recall) == (100, 0)


def test_intervals_enclose_the_shares(objects: Objects) -> None:
    captions = ["a dog", "a cat", "a dog and a cat", "a tree"] * 5
    report = score_objects(captions, [["a dog", "a dog"]] * 20, objects)
    intervals = report.intervals()
    assert intervals["objects_right"][0] < report.precision < intervals["objects_right"][1]
    assert intervals["objects_found"][0] < report.recall < intervals["objects_found"][1]


def test_the_words_that_come_along_are_cocos_kinds() -> None:
    objects = Objects()
    assert objects.named("A man on a surfboard") == objects.named("people surfing")
    assert objects.named("a teddy bear") != objects.named("a bear")


def test_a_file_without_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="no objects"):
        Objects(tmp_path / "none.txt")
