"""Text from outside: what may be in it, and how a message, a terminal or a picture shows it."""

import re
import reprlib
import unicodedata

CONTROLS = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of controls, surrogates, and ends of lines and paragraphs."""
TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What turns the direction of text, by which a name can look like another one."""
JOINERS = "\u200c\u200d"
"""What keeps letters apart or joins them, in Persian, Hindi and emoji; the other characters without a width are as
good as not there."""
LONGEST = 100
"""Characters of a name or value in a message."""


def is_plain(text: str, also: str = "") -> bool:
    """Whether a text of people, such as the name of a class, can be one: it has no controls but for those of `also`,
    stays on its line, is UTF-8, and keeps the direction of the text around it."""
    if text.isascii() and text.isprintable():
        return True
    strange = (unicodedata.category(c) in CONTROLS for c in text if c not in also)
    return not (any(strange) or TURNING.search(text))


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen."""
    return all(c.isspace() or unicodedata.category(c) == "Cf" for c in text)


def printable(text: object) -> str:
    """Text from outside on one line of valid UTF-8, for a terminal or a file: what is not plain in it or cannot be
    seen, and bytes that are no UTF-8, stand as backslash escapes."""
    letters = str(text)
    if letters.isascii() and letters.isprintable():
        return letters
    decoded = letters.encode("utf-8", "surrogateescape" if _is_of_bytes(letters) else "backslashreplace")
    told = decoded.decode("utf-8", "backslashreplace")
    return "".join(c if _is_seen(c) else c.encode("unicode_escape").decode() for c in told)


def _is_seen(character: str) -> bool:
    return character in JOINERS or unicodedata.category(character) not in (*CONTROLS, "Cf")


def _is_of_bytes(text: str) -> bool:
    """Whether all surrogates in a text stand for bytes, as in the name of a file that is no UTF-8."""
    return all("\udc80" <= c <= "\udcff" for c in text if "\ud800" <= c <= "\udfff")


def terminal_lines(text: object) -> str:
    """Likewise, of a text whose lines stay lines."""
    return "\n".join(map(printable, str(text).split("\n")))


class Shortened(reprlib.Repr):
    """`repr` that visits a few items of a value only, however large and often repeated it is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = LONGEST
        self.maxlevel, self.maxdict, self.maxlist = 3, 6, 8

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 200 else f"an integer of {x.bit_length()} bits"


def shortened(value: object) -> str:
    """A value from outside for a message, as it came: in one line of bounded length."""
    return printable(Shortened().repr(value))


def plain(text: object, most: int = LONGEST) -> str:
    """A name from outside for a message: shortened in its middle, with nothing that a terminal would act on."""
    letters = text if isinstance(text, str) else shortened(text)
    if len(letters) > most:
        letters = f"{letters[: most // 2]}...{letters[-most // 4 :]}"
    return printable(letters)


def quoted(name: object) -> str:
    """Likewise, between backquotes."""
    return f"`{plain(name)}`"


def one_line(text: object, most: int = 1000) -> str:
    """A sentence with parts from outside, or an error, on one line of at most so many letters."""
    said = " ".join(str(text).split())
    return plain(said or type(text).__name__ if isinstance(text, BaseException) else said, most)
