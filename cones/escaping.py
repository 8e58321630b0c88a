"""Text from outside made harmless where it is shown: labels, names of files and of rows. One function a kind of place.

HTML is the template's own work (jinja2 with `autoescape`).
"""

import re

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""What a spreadsheet may take for the beginning of a formula (OWASP, CSV injection), and what marks text there."""
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line and paragraph separators, what turns the direction of text, and bytes that are no text."""
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


def terminal_text(text: object) -> str:
    """One line for a terminal: what would move its cursor, colour it, or not print at all stands as an escape."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def drawn_text(text: str, most: int = 80) -> str:
    """One line to draw into a picture, at most so many characters of it: a picture may be as wide as its text."""
    line = terminal_text(text)
    return line if len(line) <= most else f"{line[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def terminal_lines(text: object) -> str:
    """Likewise, of a text whose lines stay lines."""
    return "\n".join(map(terminal_text, str(text).split("\n")))


def markdown_text(text: object) -> str:
    """Text in Markdown, on one line, without a meaning there."""
    return MARKS.sub(lambda found: f"\\{found[0]}", terminal_text(text))
