"""Text from outside in the cells of a CSV, harmless to whoever opens it.

HTML is the template's own work (jinja2 with `autoescape`).
"""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""What a spreadsheet may take for the beginning of a formula (OWASP, CSV injection), and what marks text there."""


def csv_cell(text: str) -> str:
    """A cell of text, behind `'` where a spreadsheet would run it; `csv_text` gives the text back."""
    return f"'{text}" if text.startswith(FORMULA) else text


def csv_text(cell: str) -> str:
    """The text of a cell that `csv_cell` has made."""
    return cell.removeprefix("'")


def plot_text(text: str) -> str:
    """A cell of text for `dvc plots show`, which puts it into a script as it is: nothing in it ends that script."""
    return csv_cell(text.replace("<", "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}"))
