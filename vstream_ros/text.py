"""Texts that came from outside: a message's field, a file's name, another library's error."""

from __future__ import annotations

TEXT_LIMIT = 200


def clipped(text: str, limit: int = TEXT_LIMIT) -> str:
    """``text`` as one printable line of at most ``limit`` characters; its middle is left out where it is longer.

    The beginning of an error says what is wrong, its end what to do. Takes no time for a text of megabytes.
    """
    if len(text) > limit:
        tail = (limit - 3) // 3
        text = f"{text[: limit - 3 - tail]} … {text[len(text) - tail :]}"
    return "".join(character if character.isprintable() else " " for character in text)
