"""What goes through the waist has its protocol in every signature: no backbone, features or method is of any type."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TYPED = {"backbone", "clip", "sd", "glip", "features", "method", "pictures", "encoded"}


def annotated(tree: ast.AST) -> list[tuple[str, ast.expr]]:
    """Each parameter, variable, field and property with its type; a parameter that says none may be anything."""
    found: list[tuple[str, ast.expr]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            found.append((ast.unparse(node.target).removeprefix("self."), node.annotation))
        elif isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            found += [(a.arg, a.annotation or ast.Name("Any")) for a in given]
            found += [(node.name, node.returns)] if node.returns is not None else []
    return found


def untyped(source: str) -> list[str]:
    """The names among `TYPED` that may be anything."""
    names = (
        (name.strip("_"), {part.strip() for part in ast.unparse(kind).strip("'\"").split("|")})
        for name, kind in annotated(ast.parse(source))
    )
    return [name for name, kinds in names if name in TYPED and "Any" in kinds]


def test_what_is_looked_for_is_found() -> None:
    source = "def f(backbone: Any, text: Any, method: 'Any | None', sd: int, clip): ...\nclass A:\n    features: Any\n"
    assert sorted(untyped(source)) == ["backbone", "clip", "features", "method"]


@pytest.mark.parametrize("room", sorted(p.name for p in (ROOT / "cones").iterdir() if (p / "__init__.py").exists()))
def test_nothing_of_the_waist_is_of_any_type(room: str) -> None:
    where = {str(p.relative_to(ROOT)): untyped(p.read_text()) for p in (ROOT / "cones" / room).rglob("*.py")}
    assert {path: names for path, names in where.items() if names} == {}
