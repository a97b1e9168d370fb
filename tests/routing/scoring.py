"""How well labels are guessed: macro-F1 and the confusion matrix."""

from collections import Counter
from collections.abc import Sequence

Pair = tuple[str, str]  # (label, guess)


def f1_by_label(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return F1 of each label that occurs; a guess outside the labels counts as a miss."""
    labels, guesses = Counter(pair[0] for pair in pairs), Counter(pair[1] for pair in pairs)
    right = Counter(label for label, guess in pairs if label == guess)
    return {label: 2 * right[label] / (labels[label] + guesses[label]) for label in sorted(labels)}


def macro_f1(pairs: Sequence[Pair]) -> float:
    """Return the unweighted mean of the labels' F1."""
    scores = f1_by_label(pairs)
    return sum(scores.values()) / len(scores)


def confusion(pairs: Sequence[Pair]) -> str:
    """Return F1 and the wrong guesses, a line per label."""
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    lines = [f"macro-F1 {macro_f1(pairs):.3f}"]
    for label, score in f1_by_label(pairs).items():
        taken = ", ".join(f"{g} x{n}" for (one, g), n in sorted(wrong.items()) if one == label)
        lines.append(f"{label:14} F1 {score:.3f}  taken for: {taken or '-'}")
    return "\n".join(lines)
