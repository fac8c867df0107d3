"""`with tracer.iter[...] as step:` in a block: a loop over steps in everything but its keyword.

It is told by how it is written, before anything runs: a `with` over `....iter[...]` or `....all()`.
"""

from __future__ import annotations

import ast


def is_repeated(item: ast.withitem) -> bool:
    """Whether an item of a `with` says that the body is run once for each step."""
    manager = item.context_expr
    if isinstance(manager, ast.Subscript):
        return isinstance(manager.value, ast.Attribute) and manager.value.attr == "iter"
    bare = isinstance(manager, ast.Call) and not manager.args and not manager.keywords
    return bare and isinstance(manager.func, ast.Attribute) and manager.func.attr == "all"  # type: ignore[union-attr]


def as_loop(node: ast.With, unnamed: str) -> ast.stmt:
    """`with steps as n: ...` as `for n in steps: ...`; any other `with` as it is.

    Args:
        unnamed: the name of the loop variable where there is no `as`.
    """
    index = next((i for i, item in enumerate(node.items) if is_repeated(item)), None)
    if index is None:
        return node
    item, body = node.items[index], node.body
    if later := node.items[index + 1 :]:
        body = [as_loop(ast.copy_location(ast.With(later, body), node), unnamed)]
    target = item.optional_vars or ast.copy_location(ast.Name(unnamed, ast.Store()), node)
    loop = ast.copy_location(ast.For(target, item.context_expr, body, []), node)
    if not index:
        return loop
    return ast.copy_location(ast.With(node.items[:index], [loop]), node)
