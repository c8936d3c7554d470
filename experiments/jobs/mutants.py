"""Which of cosmic-ray's mutations are valid mutants: changes of what a module decides, such as a person could write.

cosmic-ray changes whatever stands in a file. Two rules leave out, before any test runs, what says nothing about tests:

- Only the operators of `SWAPS` and `OTHERS`. A comparison becomes its negation or moves by its border, an arithmetic
  operator becomes a near one. `a << b` in place of `a + b` would raise at the first float, and each such crash would
  count as noticed.
- Only mutants that still compile and that differ from the module once `plain` has taken out what decides nothing:
  annotations (the calls in them stay, since a default may stand there), docstrings, imports for the type checker, the
  words of errors, `zip`'s `strict`, what is said to `@dataclass`, the year of a citation, and how wide a field's
  search space is (`ge` and `le`: whether 12 or 13 is the widest is a choice, and no computation says which is right).
"""

from __future__ import annotations

import ast
import difflib
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosmic_ray.work_item import MutationSpec

SWAPS = {
    "Comparison": {
        "Eq": ("NotEq",), "NotEq": ("Eq",), "Is": ("IsNot",), "IsNot": ("Is",),
        "Lt": ("LtE", "GtE"), "LtE": ("Lt", "Gt"), "Gt": ("GtE", "LtE"), "GtE": ("Gt", "Lt"),
    },
    "Binary": {
        "Add": ("Sub", "Mul"), "Sub": ("Add",), "Mul": ("Div", "Add"), "Div": ("Mul",), "FloorDiv": ("Div", "Mul"),
        "Mod": ("FloorDiv",), "Pow": ("Mul",), "BitOr": ("BitAnd",), "BitAnd": ("BitOr",),
    },
}  # fmt: skip
"""By kind of operator: what is put in place of each."""
OTHERS = (
    "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer",
    "ZeroIterationForLoop",
    "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Invert",
)  # fmt: skip
"""Operators of other kinds: a condition negated, a constant moved by one, a loop left out, a sign dropped."""
OPERATORS = frozenset(
    f"core/{name}"
    for name in (
        *OTHERS,
        *(f"Replace{k}Operator_{a}_{b}" for k, pairs in SWAPS.items() for a, others in pairs.items() for b in others),
    )
)


class _Plain(ast.NodeTransformer):
    """Takes out what decides nothing."""

    def _calls(self, annotation: ast.expr | None) -> ast.expr | None:
        """The calls in an annotation, as in `Annotated[int, Field(default=1)]`: pydantic reads them."""
        if annotation is None:
            return None
        calls: list[ast.expr] = [node for node in ast.walk(annotation) if isinstance(node, ast.Call)]
        return ast.Tuple(calls, ast.Load())

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = self._calls(node.annotation) or node.annotation
        return self.generic_visit(node)

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        """All parameters in one list: whether one may be given by position is for the caller to know."""
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.defaults = [*node.defaults, *(one for one in node.kw_defaults if one is not None)]
        node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        for one in (*node.args, node.vararg, node.kwarg):
            if one is not None:
                one.annotation = self._calls(one.annotation)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for one in node.decorator_list:
            if isinstance(one, ast.Call) and ast.unparse(one.func).endswith("dataclass"):
                one.keywords = []
        return self._without_docstring(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._without_docstring(node)

    def _without_docstring(self, node: ast.FunctionDef | ast.ClassDef | ast.Module) -> ast.AST:
        node.body = [
            one for one in node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        ]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if any(isinstance(one, ast.Name) and one.id == "TYPE_CHECKING" for one in ast.walk(node.test)):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Which error, not in what words."""
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        left_out = {"zip": {"strict"}, "Field": {"ge", "gt", "le", "lt"}}.get(ast.unparse(node.func), set())
        node.keywords = [one for one in node.keywords if one.arg not in left_out]
        if ast.unparse(node.func) == "Citation":
            node.args = []
        return self.generic_visit(node)


@lru_cache(maxsize=64)
def plain(source: str) -> str:
    """A module's code without what decides nothing, in one notation. Raises SyntaxError."""
    return ast.dump(_Plain().visit(ast.parse(source)))


def valid(before: str, after: str) -> bool:
    """Whether a mutated source compiles and may decide otherwise."""
    try:
        return plain(before) != plain(after)
    except SyntaxError:
        return False


def mutated(source: str, mutation: MutationSpec) -> str | None:
    """A module's source with one mutation; None where there is none to make."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    code: str | None = mutate_code(source, get_operator(mutation.operator_name)(), mutation.occurrence)
    return code


def change(before: str, after: str) -> tuple[str, str, int]:
    """What a mutation changes: the lines before and after, stripped and joined, and the number of the first."""
    old, new = before.splitlines(), after.splitlines()
    for tag, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            return " ".join(line.strip() for line in old[i:j]), " ".join(line.strip() for line in new[k:m]), i + 1
    return "", "", 0
