"""Text from outside made harmless where it is shown: labels, names of files and of rows. One function a kind of place.

HTML is the template's own work (jinja2 with `autoescape`).
"""

import re
import unicodedata

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""What a spreadsheet may take for the beginning of a formula (OWASP, CSV injection), and what marks text there."""
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of controls, what is invisible or turns the direction of text, surrogates and line ends."""
MARKS = re.compile(r"[\\`*_{}\[\]()#!|<>~&]")
"""What Markdown gives a meaning."""


def csv_cell(text: str) -> str:
    """A cell of text, behind `'` where a spreadsheet would run it; `csv_text` gives the text back."""
    return f"'{text}" if text.startswith(FORMULA) else text


def csv_text(cell: str) -> str:
    """The text of a cell that `csv_cell` has made."""
    return cell.removeprefix("'")


def plot_text(text: str) -> str:
    """A cell of text for `dvc plots show`, which puts it into a script as it is: nothing in it ends that script."""
    return csv_cell(text.replace("<", "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"))


def is_plain(character: str) -> bool:
    """Whether a character can be seen, and does nothing but stand on its line."""
    return unicodedata.category(character) not in UNSEEN


def printable(text: object) -> str:
    """Text from outside on one line of valid UTF-8, for a terminal or a file: what is not plain in it, and bytes that
    are no UTF-8, stand as backslash escapes."""
    letters = str(text)
    if letters.isascii() and letters.isprintable():
        return letters
    decoded = letters.encode("utf-8", "surrogateescape" if _is_of_bytes(letters) else "backslashreplace")
    told = decoded.decode("utf-8", "backslashreplace")
    return "".join(c if is_plain(c) else c.encode("unicode_escape").decode() for c in told)


def _is_of_bytes(text: str) -> bool:
    """Whether all surrogates in a text stand for bytes, as in the name of a file that is no UTF-8."""
    return all("\udc80" <= c <= "\udcff" for c in text if "\ud800" <= c <= "\udfff")


def drawn_text(text: str, most: int = 80) -> str:
    """One line to draw into a picture, at most so many characters of it: a picture may be as wide as its text."""
    line = printable(text)
    return line if len(line) <= most else f"{line[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def terminal_lines(text: object) -> str:
    """Likewise, of a text whose lines stay lines."""
    return "\n".join(map(printable, str(text).split("\n")))


def markdown_text(text: object) -> str:
    """Text in Markdown, on one line, without a meaning there."""
    return MARKS.sub(lambda found: f"\\{found[0]}", printable(text))
