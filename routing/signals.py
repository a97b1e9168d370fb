"""What a prompt's text shows at a glance: named signals, found in linear time.

No regular expression runs here. The text is folded once (Latin-1, lower case, punctuation to
spaces), split into words and looked up; code is recognised by how its lines begin and end. At
most `SCAN_HEAD + SCAN_TAIL` characters are read for words and `MAX_LINES` lines for code: an
instruction stands at the start or at the end of a prompt, the material it works on between.
"""

import itertools
from collections.abc import Iterable
from functools import lru_cache

from routing.code_lines import code_signals, has_code
from routing.features import RequestFeatures
from routing.lexicon import (
    OTHER_SCRIPTS,
    PHRASES,
    POLITE,
    QUESTION_LABELS,
    QUESTION_MARKS,
    VERBS,
    WORDS,
)

LONG_CHARS = 900  # beyond it a prompt carries material: a document, a passage, a file
SHORT_CHARS = 90
SCAN_HEAD = 320
SCAN_TAIL = 200
MAX_CLAUSES = 6
_LEAD_WORDS = 12  # words looked at for the verb that opens a prompt; half for a clause
_KEPT = "'+#_"  # punctuation that is part of a word: what's, c++, c#, snake_case


def _set(words: str) -> frozenset[str]:
    """Return the words of a line as a set."""
    return frozenset(words.split())


def _phrases(listed: str) -> list[str]:
    """Return the phrases of a comma-separated list that may span lines."""
    return [" ".join(phrase.split()) for phrase in listed.split(",")]


def _fold_table() -> bytes:
    """Return the Latin-1 table that lowers letters and turns punctuation into spaces."""
    table = bytearray(b" " * 256)
    for code in range(256):
        char = chr(code)
        if char.isalnum() or char in _KEPT:
            lower = ord(char.lower())
            table[code] = lower if lower < 256 else code
    return bytes(table)


def _clause_table() -> bytes:
    """Return the folding table with every mark that ends a clause turned into a full stop."""
    table = bytearray(_fold_table())
    for mark in b".?!:,;\n":
        table[mark] = ord(".")
    return bytes(table)


_FOLD = _fold_table()
_CLAUSE_FOLD = _clause_table()
# What prose is made of: deleting it leaves the digits and symbols, a handful in most prompts.
_PROSE = bytes(code for code in range(256) if chr(code).isalpha() or chr(code) in " .,;:?!'-()\n")

_Hit = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]


def _index() -> dict[str, _Hit]:
    """Return word -> (its signals, the phrases to try where it occurs, each with its signal).

    A phrase is indexed by its longest word: it is looked for only where that word occurs.
    """
    signals: dict[str, list[str]] = {}
    phrases: dict[str, list[tuple[str, str]]] = {}
    for signal, words in WORDS.items():
        for word in _set(words):
            signals.setdefault(word, []).append(signal)
    for signal, listed in PHRASES.items():
        for phrase in _phrases(listed):
            trigger = max(phrase.split(), key=len)
            phrases.setdefault(trigger, []).append((f" {phrase} ", signal))
    return {
        word: (tuple(signals.get(word, ())), tuple(phrases.get(word, ())))
        for word in signals.keys() | phrases.keys()
    }


def _verb_index() -> dict[str, tuple[str, ...]]:
    """Return verb -> what a clause that it opens asks for; some verbs are ambiguous."""
    index: dict[str, tuple[str, ...]] = {}
    for group, verbs in VERBS.items():
        for verb in _set(verbs):
            index[verb] = (*index.get(verb, ()), f"asks to {group}")
    return index


def _mark_index() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return first character -> the marks of other scripts that it begins, with their signals."""
    index: dict[str, tuple[tuple[str, str], ...]] = {}
    for signal, marks in OTHER_SCRIPTS.items():
        for mark in _phrases(marks):
            index[mark[0]] = (*index.get(mark[0], ()), (mark, signal))
    return index


_INDEX = _index()
_VOCABULARY = frozenset(_INDEX)
_VERBS = _verb_index()
_POLITE = _set(POLITE)
_LEADS = frozenset(_VERBS) | _POLITE

_MARKS = _mark_index()
_MARK_STARTS = frozenset(_MARKS)

_LANGUAGES = _set(WORDS["language name"])
_INTO = _set("to into ins auf en al au")
_QUANTITIES = _set(WORDS["quantity word"]) | _set(WORDS["number word"])
_MATH_WORDS = _set(WORDS["math word"])
_FACT_OPENERS = _set(
    "who whom whose who's when where where's which wer wann wo welche welcher welches qui quand "
    "où quel quelle quién quiénes cuándo dónde cuál chi quando dove quem onde"
)
_HOW = _set("how wie comment cómo como")
_MEASURES = _set("many much tall old far long deep big large high wide heavy fast hot cold often")
_WHAT = _set("what what's what're")
_SEVERAL = _set("are if would should can could do might were kinds makes happens")
_OPEN_OPENERS = _set("why should pourquoi warum could might would pros any")
_CLOSED_OPENERS = _set("is are was were does did do has have")
_HEARER = _set("you we i there they people it")
_ROLE_OPENERS = frozenset({("as", "a"), ("as", "an"), ("as", "the"), ("you", "are")})
_MATHS = "^²\u00d7÷"  # powers, times, divided by


def read_signals(features: RequestFeatures) -> set[str]:
    """Return the names of every signal in the request's texts."""
    text = features.user_text.strip()
    residue = text.encode("latin-1", "replace").translate(None, _PROSE).decode("latin-1")
    signals = _instruction(text)
    signals.update(_shape(text))
    signals.update(_symbols(text, residue))
    if has_code(features.user_text):
        signals |= code_signals(features.user_text)
    if not text.isascii():
        signals |= _other_scripts(text)
    if features.system_text:
        signals |= _system(features.system_text)
    if features.turns > 1 and "code body" in code_signals(features.previous_text):
        signals.add("code in the last answer")
    return signals


def fold(text: str) -> str:
    """Return `text` in lower case with punctuation as spaces, padded by a space on both sides.

    Other scripts than Latin-1 become spaces; so do quotes at the edge of a word.
    """
    raw = text.encode("latin-1", "replace").translate(_FOLD).decode("latin-1")
    return f" {raw} ".replace(" '", " ").replace("' ", " ")


def _scanned(text: str) -> str:
    """Return the part of a text that is read for words: all of it, or its start and end."""
    if len(text) <= SCAN_HEAD + SCAN_TAIL:
        return text
    return f"{text[:SCAN_HEAD]} \n {text[-SCAN_TAIL:]}"


def _lookup(folded: str, hits: Iterable[str]) -> set[str]:
    """Return the signals of the vocabulary's words and phrases in a folded text."""
    found: set[str] = set()
    for word in hits:
        signals, phrases = _INDEX[word]
        found.update(signals)
        for phrase, signal in phrases:
            if phrase in folded:
                found.add(signal)
    return found


def _instruction(text: str) -> set[str]:
    """Return the signals of the words where instructions stand: the start and the end."""
    folded = fold(_scanned(text))
    words = folded.split()
    hits = _VOCABULARY.intersection(words)
    signals = _lookup(folded, hits)
    signals.update(_opening_verb(words))
    signals.update(_later_verbs(text))
    if len(words) >= 2:
        signals.update(_opening(words[0], words[1], "".join(words[2:3])))
    if len(_QUANTITIES & hits) >= 3:
        signals.add("several quantities")
    if len(_MATH_WORDS & hits) >= 2:
        signals.add("several math words")
    if "language name" in signals and _names_a_target(words):
        signals.add("into a language")
    return signals


@lru_cache(maxsize=256)
def _system(text: str) -> frozenset[str]:
    """Return the signals of a system prompt, each marked as such.

    Kept for the latest few hundred prompts: an application sends the same one every time.
    """
    folded = fold(_scanned(text))
    found = _lookup(folded, _VOCABULARY.intersection(folded.split()))
    return frozenset(f"system: {signal}" for signal in found)


def _opening_verb(words: Iterable[str]) -> tuple[str, ...]:
    """Return what the first words ask for, looking past polite ones."""
    for word in itertools.islice(words, _LEAD_WORDS):
        if word in _VERBS:
            return _VERBS[word]
        if word not in _POLITE:
            return ()
    return ()


def _later_verbs(text: str) -> Iterable[str]:
    """Yield what clauses after the first ask for; of a long text, the last line only.

    The clauses of a long text are its material's, and ask for nothing.
    """
    if len(text) > LONG_CHARS:
        clauses = [fold(text[-SCAN_TAIL:].rpartition("\n")[2])]
    else:
        raw = text[:SCAN_HEAD].encode("latin-1", "replace").translate(_CLAUSE_FOLD)
        clauses = raw.decode("latin-1").split(".", MAX_CLAUSES)[1:]
    for clause in clauses:
        words = clause.split(None, _LEAD_WORDS // 2)
        if words and words[0] in _LEADS:
            for verb in _opening_verb(words):
                yield f"later: {verb}"


def _opening(first: str, second: str, third: str) -> Iterable[str]:
    """Yield what the first three words of a prompt tell: the kind of question, a role."""
    if first in _FACT_OPENERS or (first in _HOW and second in _MEASURES):
        yield "asks for a fact"
    elif first in _HOW or first in _OPEN_OPENERS:
        yield "asks openly"
    elif first in _WHAT:
        if second not in _SEVERAL:
            yield "asks for a fact"
        elif third != "the":  # "what are the": the members of a board, or the pros and cons
            yield "asks openly"
    elif first in _CLOSED_OPENERS:
        yield "asks openly" if second in _HEARER else "asks for a fact"
    elif (first, second) in _ROLE_OPENERS and third != "given":
        yield "opens with a role"


def _names_a_target(words: list[str]) -> bool:
    """Return whether a language stands where the target of a translation does."""
    return any(
        language in _LANGUAGES and before in _INTO
        for before, language in itertools.pairwise(words)
    )


def _shape(text: str) -> Iterable[str]:
    """Yield the signals of the text's form: its length, lines and question marks."""
    long, lines = len(text) > LONG_CHARS, text.count("\n")
    tail = text[-SCAN_TAIL:]
    if long:
        yield "long text"
        if any(label in tail.lower() for label in QUESTION_LABELS):
            yield "labelled question"
    elif len(text) <= SHORT_CHARS and not lines:
        yield "short line"
    if lines >= 3:
        yield "many lines"
    if text.endswith(QUESTION_MARKS):
        yield "question mark"
        if long and ("\n" in tail or ". " in tail or "? " in tail):
            yield "question after a passage"
    if not long and text.count("?") >= 2:
        yield "several questions"


def _symbols(text: str, residue: str) -> Iterable[str]:
    """Yield the signals of digits and symbols, given what is left of the text beside prose."""
    if not residue:
        return
    if len(text) <= LONG_CHARS:
        if sum(map(residue.count, "0123456789")) >= 2:
            yield "digits"
        if "$" in residue or "%" in residue or "€" in text:
            yield "money or percent"
    operators = ("+" in residue and " + " in text) or ("*" in residue and " * " in text)
    if operators or any(mark in residue for mark in _MATHS) or "= 0" in text or "x)" in text:
        yield "formula"
    if "{" in residue and ('":' in text or '{"' in text):
        yield "JSON in the prompt"


def _other_scripts(text: str) -> set[str]:
    """Return the signals of instructions in scripts that folding drops."""
    scanned = _scanned(text).lower()
    return {
        signal
        for first in _MARK_STARTS.intersection(scanned)
        for mark, signal in _MARKS[first]
        if mark in scanned
    }
