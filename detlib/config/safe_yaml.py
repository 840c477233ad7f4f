"""Read YAML as data only, remembering the line of every key; arithmetic is the one thing that is computed.

Widely copied configs write anchor sizes as `!!python/object/apply:eval ["[[x, x * 2**(1.0/3)] for x in [32, 64]]"]`.
Such expressions go through `evaluate`, an interpreter of a handful of node types whose work is bounded; every other
tag that would make python objects is refused.
"""

import ast
import logging
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from detlib.utils.errors import ConfigError

__all__ = ["LocatedDict", "evaluate", "load"]

_logger = logging.getLogger(__name__)

# Far above what configs need, far below what takes time.
_MAX_VALUES = 100_000  # in a file, with aliases written out
_MAX_DEPTH = 100  # of brackets
_MAX_LENGTH = 5000  # characters of an expression
_MAX_STEPS = 20_000
_MAX_NUMBER = 1e18
_MAX_EXPONENT = 64

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


class LocatedDict(dict):
    """A mapping read from a file, which knows the "file:line" of each key; `origins.places` gives them.

    `deletes` says that it drops what the section had before, see `merge`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, str] = {}
        self.deletes = False


def load(text: str, name: str) -> Any:
    """Read one YAML document; its mappings come as `LocatedDict`.

    Args:
        name: What to call the file in errors and locations.

    Raises:
        ConfigError: The text is not YAML, or asks for more than data.
    """
    try:
        _check_depth(text)
        loader = _Loader(text)
        loader.text, loader.name = text, name
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except ConfigError:
        raise
    except Exception as error:  # PyYAML raises anything for a value that does not fit its tag, as in `!!bool maybe`.
        reason = error if isinstance(error, yaml.YAMLError | ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{name}: not valid YAML: {reason}") from error


def _check_depth(text: str) -> None:
    """Refuse brackets within brackets beyond measure, for which PyYAML would take minutes before it gave up."""
    depth = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"brackets are more than {_MAX_DEPTH} levels deep")


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Refuse aliases that contain themselves or multiply beyond measure."""
    if id(node) in counts:
        return counts[id(node)]
    counts[id(node)] = _MAX_VALUES  # As long as it is unknown: meeting it again below itself is too much.
    total = 1
    if not isinstance(node, yaml.ScalarNode):
        for child in node.value:
            total += sum(_count_values(part, counts) for part in (child if isinstance(child, tuple) else (child,)))
    if total > _MAX_VALUES:
        raise yaml.YAMLError(f"it stands for more than {_MAX_VALUES} values")
    counts[id(node)] = total
    return total


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with locations and the arithmetic tag."""

    text: str

    def construct_located(self, node: yaml.MappingNode) -> Any:
        data = LocatedDict()
        yield data  # Filled afterwards, the way PyYAML builds containers.
        self.warn_of_repeated_keys(node)
        data.update(self.construct_mapping(node))
        data._places = {self.construct_object(key): self.place(key) for key, _ in node.value}

    def warn_of_repeated_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                _logger.warning(f"{self.place(key)}: {key.value} stands here again and replaces what came before")
            seen.add(str(key.value))

    def construct_arithmetic(self, node: yaml.Node) -> Any:
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        if len(parts) != 1 or not isinstance(parts[0], yaml.ScalarNode):
            self.refuse(node, "expected a list with one expression")
        try:
            return evaluate(parts[0].value)
        except ConfigError as error:
            self.refuse(node, str(error))

    def construct_foreign(self, node: yaml.Node) -> Any:
        self.refuse(node, "a config holds plain data only; write the value itself")

    def refuse(self, node: yaml.Node, reason: str) -> None:
        source = " ".join(self.text[node.start_mark.index : node.end_mark.index].split())
        raise ConfigError(f"{self.place(node)}: refused {source}: {reason}")

    def place(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_located)
_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _Loader.construct_arithmetic)
_Loader.add_constructor(None, _Loader.construct_foreign)


def evaluate(expression: str) -> Any:
    """Compute an expression of numbers, lists, tuples, + - * / ** and comprehensions over written lists.

    Raises:
        ConfigError: The expression has anything else in it, or takes too much work.
    """
    if len(expression) > _MAX_LENGTH:
        raise ConfigError(f"the expression has more than {_MAX_LENGTH} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return _Arithmetic().value(tree.body, {})
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ConfigError(f"not an expression: {error}") from error
    except (ArithmeticError, TypeError) as error:
        raise ConfigError(f"cannot be computed: {error}") from error


class _Arithmetic:
    """One evaluation; it counts its steps so that nested comprehensions come to an end."""

    def __init__(self) -> None:
        self._steps = 0

    def value(self, node: ast.AST, names: Mapping[str, Any]) -> Any:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise ConfigError(f"it takes more than {_MAX_STEPS} steps")
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return _bounded(number)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.List(elts=parts):
                return [self.value(part, names) for part in parts]
            case ast.Tuple(elts=parts):
                return tuple(self.value(part, names) for part in parts)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -_number(self.value(operand, names))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self._binary(op, self.value(left, names), self.value(right, names))
            case ast.ListComp(
                elt=element,
                generators=[ast.comprehension(target=ast.Name(id=name), iter=written, ifs=[], is_async=0)],
            ) if isinstance(written, ast.List | ast.Tuple):
                # Names stand for numbers only: lists could double at every level.
                items = [_number(item) for item in self.value(written, names)]
                return [self.value(element, {**names, name: item}) for item in items]
        raise ConfigError(
            f"{ast.unparse(node)!r} is not allowed; allowed are numbers, lists, tuples, + - * / ** and "
            "list comprehensions over a written list"
        )

    def _binary(self, op: ast.operator, left: Any, right: Any) -> int | float:
        left, right = _number(left), _number(right)
        if isinstance(op, ast.Pow) and abs(right) > _MAX_EXPONENT:
            raise ConfigError(f"the exponent {right} is beyond {_MAX_EXPONENT}")
        return _bounded(_OPERATORS[type(op)](left, right))


def _number(value: Any) -> int | float:
    if not isinstance(value, int | float):
        raise ConfigError(f"arithmetic is for numbers, got {value!r}")
    return value


def _bounded(value: Any) -> int | float:
    """Keep integers small, so that no operation on them takes long; a root of a negative number is complex."""
    if not math.isfinite(abs(_number(value))) or abs(value) > _MAX_NUMBER:
        raise ConfigError(f"a number is beyond {_MAX_NUMBER:g}")
    return value
