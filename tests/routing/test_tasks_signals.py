"""What the words and lines of a text are taken for."""

import pytest

from routing import lexicon
from routing.code_lines import MUCH, code_signals
from routing.signals import fold


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Fix C++, C# and 'tmp_1'!", " fix c++ c# and tmp_1  "),
        ("What's ÜBER-new?", " what's über new  "),
        ("“翻译” é", "       é "),
    ],
)
def test_folding_keeps_words_and_drops_what_surrounds_them(text: str, folded: str) -> None:
    assert fold(text).split() == folded.split()


@pytest.mark.parametrize(
    "line",
    [
        "def area(w, h):",
        "from typing import Any",
        "import os",
        "total += price",
        "cur.execute(sql)",
        "<button class='btn'>",
        "    return x  # the (only) answer",
        "if (a > b) {",
        "});",
        "#include <vector>",
    ],
)
def test_lines_of_code_are_recognised(line: str) -> None:
    assert "code line" in code_signals(line)


@pytest.mark.parametrize(
    "line",
    [
        "Please write to me.",
        "from the very first day on, it rained",
        "import duties rose again last year",
        "He said (quietly) that it was late.",
        "with best regards",
        "    an indented line of a poem",
        "class sizes are too large",
        "a = b",
        "",
    ],
)
def test_prose_is_not_taken_for_code(line: str) -> None:
    assert code_signals(line) == set()


def test_whether_prose_leads_the_code_tells_an_edit_from_a_completion() -> None:
    code = "def f(x):\n    return x + 1\n"

    assert code_signals(code) == {"code body", "code first"}
    assert code_signals(f"Rename it.\n\n{code}") == {"code body", "prose before code"}


def test_much_code_is_noticed_without_reading_all_of_it() -> None:
    assert "much code" in code_signals("x.run()\n" * MUCH)
    assert "much code" not in code_signals("x.run()\n" * (MUCH - 1))


def test_every_word_and_phrase_of_the_lexicon_survives_folding() -> None:
    words = " ".join([*lexicon.WORDS.values(), *lexicon.VERBS.values(), lexicon.POLITE]).split()
    phrases = ", ".join(lexicon.PHRASES.values()).split(",")

    assert [word for word in words if fold(word).split() != [word]] == []
    assert [phrase for phrase in phrases if fold(phrase).split() != phrase.split()] == []
