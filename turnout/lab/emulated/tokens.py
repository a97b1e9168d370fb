"""A tokenizer that needs no vocabulary, counts about as a real one does, and can be undone.

A token is up to four letters or digits with the space before them, or any other single character:
"Good rails" is `Good`, ` rail`, `s`. English prose comes to 1.5 tokens a word, a BPE
vocabulary to 1.3. A token's id is its UTF-8 bytes as a number, so that ids need no table.
"""

import re
from typing import Any

_TOKEN = re.compile(r" ?[A-Za-z0-9]{1,4}|.", re.DOTALL)


def tokenize(text: str) -> list[str]:
    """Split text into tokens; joined they are the text again."""
    return _TOKEN.findall(text)


def token_id(token: str) -> int:
    """Return the id of a token, below 2**48."""
    return int.from_bytes(b"\x01" + token.encode())


def token_text(token: int) -> str:
    """Return the token with this id; what is no id of ours becomes replacement characters."""
    raw = token.to_bytes((token.bit_length() + 7) // 8 or 1)
    return raw[1:].decode(errors="replace")


def text_of(content: Any) -> str:
    """Return the text of a message's content, a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(p.get("text") or "") for p in content if isinstance(p, dict))
    return ""


def render_chat(messages: list[dict[str, Any]]) -> str:
    """Render messages as ChatML, with the assistant's turn opened."""
    turns = [
        f"<|im_start|>{m.get('role', 'user')}\n{text_of(m.get('content'))}<|im_end|>\n"
        for m in messages
    ]
    return "".join(turns) + "<|im_start|>assistant\n"
