"""labels.py: labels of any kind become numbers, and what does not fit is named."""

from __future__ import annotations

import numpy as np
import pytest

from tinyvae import labels
from tinyvae.labels import Labels


@pytest.mark.parametrize(
    "y",
    [
        [7, 3, 3, 9],
        [7.0, 3.0, 3.0, 9.0],
        ["dog", "cat", "cat", "owl"],
        [False, True, True, False],
        np.array([7, 3, 3, 9], np.uint8),
        np.array(["dog", "cat", "cat", "owl"], object),
    ],
    ids=str,
)
def test_codes_are_places_among_the_sorted_labels(y):
    known = Labels.of(labels.checked(y))
    codes = known.codes(y, 4, dtype=np.float32)
    assert codes.dtype.kind == "i"
    assert known.classes[codes].tolist() == list(y)
    assert known.size == len(set(y))
    assert known.codes(y[1], 3, dtype=np.float32).tolist() == [codes[1]] * 3  # one for all
    assert known.parse(str(y[0])) == y[0]


@pytest.mark.parametrize("y", [[4, -1, 6], [4.0, -1.0, 6.0], ["a", "-1", "b"], ["a", -1, "b"]])
def test_unknown_labels(y):
    known = Labels.of(labels.checked(y))
    assert known.size == 2
    assert known.codes(y, 3, dtype=np.float32, partly=True).tolist() == [0, -1, 1]
    with pytest.raises(ValueError, match=r"y is unknown \(-1\) in row 1; the labels are"):
        known.codes(y, 3, dtype=np.float32)
    with pytest.raises(ValueError, match="all of them are unknown"):
        Labels.of(labels.checked(y)[1:2])


def test_conditions_go_in_as_they_are():
    y = np.arange(6.0).reshape(3, 2)
    known = Labels.of(y)
    assert (known.classes, known.size) == (None, 2)
    codes = known.codes(y, 3, dtype=np.float32)
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes, y)
    np.testing.assert_array_equal(known.codes([1, 2], 3, dtype=np.float64), [[1, 2]] * 3)
    np.testing.assert_array_equal(known.parse("0.5,2"), [0.5, 2])
    for wrong in (y[:, :1], y[0, :1]):
        with pytest.raises(ValueError, match=r"y has shape \(3, 1\), expected \(3, 2\)"):
            known.codes(wrong, 3, dtype=np.float32)
    with pytest.raises(ValueError, match="expected 2 numbers with commas between, got 'a'"):
        known.parse("a")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([[1, 2], [3, 4]], r"got int64 \(2, 2\)"),
        (np.zeros((2, 2, 2)), "or a condition"),
        ([1.0, np.nan], "y has NaN at row 1"),
        ([1.0, 0.5], r"a condition of one column is \(N, 1\)"),
        ([None, 3], "y must be labels"),
        ([1 + 2j], "y must be labels"),
    ],
)
def test_what_is_no_label(y, message):
    with pytest.raises(ValueError, match=message):
        Labels.of(labels.checked(y))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([3, 4, 9], "y has the label 9 in row 2; the labels are 3, 4"),
        ([3, 4], "y has 2 labels for 3 rows"),
        (["3", "4", "4"], "y has the label 3 in row 0"),
        (7, "y has the label 7 in row 0"),
        (np.zeros((3, 2)), "but fit saw the labels 3, 4"),
    ],
)
def test_labels_that_fit_had_not_seen(y, message):
    with pytest.raises(ValueError, match=message):
        Labels.of(np.array([3, 4])).codes(y, 3, dtype=np.float32)


def test_a_text_that_is_no_label():
    known = Labels.of(np.arange(30))
    with pytest.raises(ValueError, match=r"no label 'x'; the labels are 0, 1, .*, 19, \.\."):
        known.parse("x")
