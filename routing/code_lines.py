"""Whether a prompt holds program text, how much, and whether prose leads it.

Lines are judged by how they begin and end over the common languages; prose seldom does either.
At most `MAX_LINES` lines are looked at, each clipped to `MAX_LINE_CHARS`.
"""

MAX_LINES = 40
MAX_LINE_CHARS = 200
MUCH = 5  # lines of code after which no more are looked for
_MARKS = ("(", "{", "=", "<", ";", "```")

_STARTS = (
    "def ", "class ", "return ", "return;", "if (", "for (", "while (", "}", "else:", "elif ",
    "try:", "except ", "with ", "@", "#include", "using ", "namespace ", "public ",
    "private ", "protected ", "static ", "const ", "let ", "var ", "function ", "async ",
    "await ", "export ", "func ", "fn ", "pub ", "impl ", "package ", "type ", "struct ",
    "interface ", "//", "/*", "<?php", "<div", "<html", "<script", "</", "SELECT ", "INSERT ",
    "UPDATE ", "CREATE ", "FROM ", "WHERE ", "JOIN ", "self.", "this.", "print(", "console.",
    "yield ", "assert ", "raise ", "throw ", "local ", "int ", "void ", "val ", "fun ",
    "echo ", ">>>", "$",
)  # fmt: skip
_ENDS = (
    "{", "}", ";", "):", "=>", "->", "},", "})", "});", "(", "],", "//", "/>", "=", "else:",
    "try:", "))",
)  # fmt: skip
_PROOF = ("(", ":", ";", "{", "<", "=", '"', "'")  # beside a start that may also open prose
_FIRST = (
    "def ", "class ", "import ", "from ", "#include", "function ", "async def", "public ",
    "const ", "fn ", "func ", "@", "package ", "using ", "<?php", "<!doctype", "SELECT ",
    "#!/", "struct ", "export ",
)  # fmt: skip


def has_code(text: str) -> bool:
    """Return whether the text may hold code at all; most prose ends here."""
    return ("\n" in text or "`" in text) and any(mark in text for mark in _MARKS)


def code_signals(text: str) -> set[str]:
    """Return the signals of program text: how much there is and whether prose leads it."""
    count, first, leads = 0, "", False
    for line in text.split("\n", MAX_LINES)[:MAX_LINES]:
        bare = line[:MAX_LINE_CHARS].strip()
        if not bare:
            continue
        coded = _is_code(bare, indented=line[0] in " \t")
        if not first:
            first, leads = bare, coded
        count += coded
        if count == MUCH:
            break
    if not count:
        return set()
    signals = {"code body"} if count >= 2 else {"code line"}
    if count == MUCH:
        signals.add("much code")
    signals.add("code first" if leads and first.startswith(_FIRST) else "prose before code")
    return signals


def _is_code(bare: str, *, indented: bool) -> bool:
    """Return whether a stripped line, not blank, looks like program text."""
    if bare.endswith(_ENDS):
        return True
    if bare.startswith(_STARTS):
        return indented or any(mark in bare for mark in _PROOF)
    if bare.startswith(("import ", "from ")):
        return " import " in bare or bare.count(" ") <= 3
    if bare[0] == "<" and bare[-1] == ">":
        return True
    name, _, rest = bare.partition(" ")
    if len(name) > 1 and rest.startswith(("= ", "+= ", ":= ")):
        return True
    called, paren, _ = bare.partition("(")
    if paren and bare[-1] == ")" and called[-1:].isalnum() and " " not in called:
        return True
    return indented and ("=" in bare or paren != "")
