"""How a test reads what `minunet explain` tells: the headings, and the numbers under each."""

import re
from unittest import mock

import numpy as np

from minunet.cli import main, matrices, story
from minunet.cli.story import tell

WIDE = 10**5


def said(capsys, *arguments):
    capsys.readouterr()
    assert main(["explain", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def whole(e, transposed=False):
    """The page with nothing left out."""
    with (mock.patch.object(matrices, "ROWS", 10**4), mock.patch.object(story, "IMAGES", 100),
          mock.patch.object(story, "BLOCKS", 100), mock.patch.object(story, "TERMS", 10**4)):
        text = tell(e, transposed, WIDE)
    assert "Left out" not in text and matrices.MORE not in text
    return text


def blocks(text):
    """What stands under each heading: rows of words. Headings are three blanks apart, a block under its heading."""
    found = {}
    for paragraph in text.split("\n\n"):
        head, *lines = paragraph.split("\n")
        spans = [match.span() for match in re.finditer(r"\S+(?: \S+)*", head)]
        for (start, end), (following, _) in zip(spans, [*spans[1:], (WIDE, 0)]):
            rows = [re.sub(r"[][|]", " ", line[start:following]).split() for line in lines]
            found.setdefault(head[start:end], [row for row in rows if row])
    return found


def numbers(rows):
    """Rows of words as an array, a structural zero as not a number."""
    return np.array([[np.nan if word == "·" else float(word) for word in row] for row in rows])


def shown(text, heading):
    """An array of the page, structural zeros as 0."""
    return np.nan_to_num(numbers(blocks(text)[heading]))


def by(*pair):
    return "x".join(map(str, pair))


# ---- the story
