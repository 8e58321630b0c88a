"""The command line: `cones check`, `cones register`, `cones lookup`."""

from typing import Annotated

import typer

from cones.process import plain_errors

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def check() -> None:
    """Read params.yaml and name every mistake in it; nothing is loaded or run."""
    from cones.config import load_params

    params = load_params()
    print(f"params.yaml is sound: {len(params.concepts)} concepts, {len(params.runs)} rows")


@app.command()
def register() -> None:
    """Mirror the finished rows to MLflow and register them; doing it again adds nothing.

    Each row becomes a version of its concept's model; the best on validation gets the alias `champion`.
    """
    from rich.console import Console
    from rich.table import Table

    from cones.config import load_params
    from cones.tracking import register as register_rows
    from cones.tracking import tracking_uri

    params = load_params()
    found = register_rows(params)
    table = Table("concept", "version", "row", "val accuracy", "", title=tracking_uri(), title_justify="left")
    for r in found:
        marks = " ".join(m for m in ("new" * r.new, "champion" * r.champion) if m)
        table.add_row(r.name, str(r.version), r.row, f"{r.val['accuracy']:.3f}", marks)
    Console().print(table)
    left = sorted(set(params.runs) - {r.row for r in found})
    if left:
        print(f"not finished, so not registered: {', '.join(left)}; `dvc repro` finishes them")


@app.command()
def lookup(name: Annotated[str, typer.Argument(help="A concept's name, as in params.yaml.")]) -> None:
    """Print the champion of a registered concept: version, row, validation metrics and URI."""
    from cones.tracking import look_up

    found = look_up(name)
    metrics = ", ".join(f"{k} {v:.4f}" for k, v in found.val.items())
    print(f"{found.name} version {found.version}")
    print(f"  row  {found.row}\n  val  {metrics}\n  URI  models:/{name}@champion")


def main() -> None:
    """Run the command line, with expected errors as one message."""
    with plain_errors():
        app()


if __name__ == "__main__":
    main()
