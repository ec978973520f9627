"""The text of `--target` becomes classes, and every class that cannot be found is told by name."""

from __future__ import annotations

import numpy as np
import pytest

from xai_cli.targets import Target, TargetRule, find_class, parse_target

LABELS = ("tabby, tabby cat", "hot dog", "crane", "wading bird, crane", "Egyptian_cat", "boat", "boat", "cat-vs-dog")
LOGITS = np.array([0.0, 3.0, 1.0, 3.0, -1.0, 2.0, 2.0, 0.5], np.float32)


def chosen(text: str, key: str = "a.jpg", labels: tuple[str, ...] = LABELS) -> list[Target]:
    rule = parse_target(text, labels)
    rule.check(key, labels)
    return rule.choose(LOGITS, key, labels)


def test_the_predicted_class_is_the_first_of_equal_ones() -> None:
    assert chosen("predicted") == [Target(1, how="predicted")]


def test_top_k_goes_from_the_highest_score_down() -> None:
    assert chosen("top:1") == [Target(1, how="top")]
    assert [target.index for target in chosen("top:5")] == [1, 3, 5, 6, 2]
    assert [target.index for target in chosen("top:8")] == [1, 3, 5, 6, 2, 7, 0, 4]


@pytest.mark.parametrize("text", ["top:0", "top:9", "top:", "top:-1", "top:2.0", "top:many", "top:²"])
def test_top_k_wants_a_number_of_classes_that_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=f"--target top:K expects a number of classes from 1 to 8, found '{text}'"):
        parse_target(text, LABELS)


@pytest.mark.parametrize(
    ("text", "index"),
    [("4", 4), ("0", 0), ("hot dog", 1), ("HOT_Dog", 1), (" hot dog ", 1), ("egyptian cat", 4), ("tabby cat", 0),
     ("tabby", 0), ("tabby, tabby cat", 0), ("wading bird", 3)],
)  # fmt: skip
def test_a_class_is_given_by_index_name_or_synonym(text: str, index: int) -> None:
    assert chosen(text) == [Target(index, how="given")]


def test_a_whole_name_goes_before_a_synonym() -> None:
    assert find_class("crane", LABELS) == 2


def test_a_name_goes_before_an_index() -> None:
    """Folders called 1, 2, 3 hold the classes of these names, not those of these indices."""
    labels = ("1", "2", "30")
    assert [find_class(text, labels) for text in ("1", "2", "30", "0")] == [0, 1, 2, 0]
    assert chosen("label", "train/1/a.jpg", labels) == [Target(0, how="label")]


def test_a_name_of_two_classes_asks_for_the_index() -> None:
    with pytest.raises(LookupError, match=r"^'Boat' names classes 5 and 6; give the index$"):
        parse_target("Boat", LABELS)
    assert parse_target("6", LABELS).given == Target(6)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hot dok", "no class is named 'hot dok'; did you mean 'hot dog'?"),
        ("tabbi", "no class is named 'tabbi'; did you mean 'tabby'"),
        ("8", "no class is named '8'; the model has classes 0 to 7"),
        ("-1", "no class is named '-1'; the model has classes 0 to 7"),
        ("predict", "no class is named 'predict'; the model has classes 0 to 7"),
    ],
)
def test_an_unknown_class_is_told_with_the_nearest(text: str, sentence: str) -> None:
    with pytest.raises(LookupError, match=f"^{sentence.replace('?', '[?]')}"):
        parse_target(text, LABELS)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("tabby-vs-hot dog", Target(0, against=1)),
        ("1-vs-0", Target(1, against=0)),
        ("cat-vs-dog", Target(7)),
        ("cat-vs-dog-vs-crane", Target(7, against=2)),
        ("2-vs-cat-vs-dog", Target(2, against=7)),
    ],
)
def test_two_classes_are_compared_even_if_a_name_holds_vs(text: str, target: Target) -> None:
    assert chosen(text) == [target]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("taby-vs-crane", "no class is named 'taby'; did you mean 'tabby'"),
        ("tabby-vs-cranes", "no class is named 'cranes'; did you mean 'crane'"),
        ("tabby-vs-", "no class is named ''; the model has classes 0 to 7"),
        ("tabby-vs-taby-vs-crane", "no class is named 'taby-vs-crane'"),
    ],
)
def test_the_unknown_side_of_two_is_told(text: str, sentence: str) -> None:
    with pytest.raises(LookupError, match=f"^{sentence}"):
        parse_target(text, LABELS)


def test_a_class_is_not_compared_with_itself() -> None:
    with pytest.raises(ValueError, match="expects two classes, found '0-vs-tabby', which names one twice"):
        parse_target("0-vs-tabby", LABELS)


def test_the_label_is_the_folder_of_the_picture() -> None:
    assert chosen("label", "val/Hot_Dog/a.jpg") == [Target(1, how="label")]
    assert chosen("label", "4/a.jpg") == [Target(4, how="label")]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("hot dok/a.jpg", "no class is named 'hot dok'; did you mean 'hot dog'[?]"),
        ("hot dog/more/a.jpg", "no class is named 'more'"),
        ("a.jpg", "--target label expects pictures in folders named after classes, found 'a.jpg' in none; give the"),
    ],
)
def test_a_picture_whose_folder_names_no_class_has_no_label(key: str, sentence: str) -> None:
    with pytest.raises(LookupError, match=f"^{sentence}"):
        TargetRule("label").check(key, LABELS)


def test_only_the_rule_label_looks_at_the_folder() -> None:
    for text in ("predicted", "top:2", "0", "0-vs-1"):
        parse_target(text, LABELS).check("nowhere/a.jpg", LABELS)
