"""A plan becomes rules of ai-edge-quantizer, and the result is held against the plan.

ai-edge-quantizer picks operators by regular expressions over their names and never says that one
met nothing. So here each operator's weight is first identified with the module's parameter, by
value; each rule then names its operators exactly; and the quantized file is read back.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_quantizer import qtyping, quantizer
from ai_edge_quantizer.transformations import duplicate_tensor

from edgezoo_core.conversion import graph
from edgezoo_core.errors import ConversionError, listing
from edgezoo_core.types import Operator, QuantPlan, WeightFormat, WeightRule

if TYPE_CHECKING:
    import torch

_FLOAT_CASTING = quantizer.AlgorithmName.FLOAT_CASTING
_MIN_MAX = quantizer.AlgorithmName.MIN_MAX_UNIFORM_QUANT

#: (signature, scope) -> the rule that its weight follows.
Assignment = Mapping[tuple[str, str], WeightRule]


def quantize(source: Path, output: Path, plan: QuantPlan, module: torch.nn.Module) -> None:
    """Quantizes a float32 file.

    Args:
        source: The float32 .tflite.
        output: Where to write the quantized one.
        plan: The format of every weight.
        module: The module that `source` was made of, weights loaded.

    Raises:
        ConversionError: An operator's weight is no parameter of the module, a rule meets no
            operator, or the file that comes out does not follow the plan.
    """
    assignment = assign(graph.read(source), plan, module)
    groups = [
        ("^(?:" + "|".join(re.escape(s) for s in sorted(scopes)) + ")$", operator, fmt)
        for (operator, fmt), scopes in _by_format(assignment).items()
    ]
    run(str(source), groups, plan.name, output)
    check(graph.read(output), assignment)


def run(
    source: str | bytes,
    groups: Iterable[tuple[str, Operator, WeightFormat]],
    recipe: str,
    output: Path | None = None,
) -> Any:
    """Runs ai-edge-quantizer.

    Args:
        source: Path or content of a float32 .tflite.
        groups: Regular expression over the names of operators, kind of operator, and format.
        recipe: Name of the recipe, for messages.
        output: Where to write the result, None to have it in memory only.

    Returns:
        The content of the quantized file.

    Raises:
        ConversionError: It refuses.
    """
    engine = quantizer.Quantizer(source)
    for regex, operator, fmt in groups:
        add = engine.add_dynamic_config if fmt.is_dynamic else engine.add_weight_only_config
        add(
            regex,
            qtyping.TFLOperationName(operator),
            fmt.bits,
            _granularity(fmt),
            _FLOAT_CASTING if fmt.is_float else _MIN_MAX,
        )
    try:
        # One of its progress bars shows whatever it is told.
        with contextlib.redirect_stderr(io.StringIO()), _duplicates_named_in_bytes():
            result = engine.quantize(
                serialize_to_path=str(output) if output else None,
                enable_progress_bar=False,
                enable_progress_report=False,
            )
    except (ValueError, RuntimeError) as e:
        raise ConversionError(
            f"ai-edge-quantizer refuses recipe {recipe}: {str(e).splitlines()[0]}",
            remedy="choose another recipe; if this one should work, report it",
        ) from e
    return result.quantized_model


@contextlib.contextmanager
def _duplicates_named_in_bytes() -> Iterator[None]:
    """Names what the quantizer duplicates as it names all else.

    In release 0.10 a duplicate's name is no bytes, and a DEQUANTIZE behind it, of a float16 head
    whose embedding has another format say, ends in a TypeError.
    """
    original = duplicate_tensor.duplicate_tensor

    def duplicate(asked: Any) -> Any:
        told = original(asked)
        tensor = asked.subgraph.tensors[told.output_tensor_id]
        if isinstance(tensor.name, str):
            tensor.name = tensor.name.encode()
        return told

    duplicate_tensor.duplicate_tensor = duplicate
    try:
        yield
    finally:
        duplicate_tensor.duplicate_tensor = original


def assign(model: Any, plan: QuantPlan, module: torch.nn.Module) -> Assignment:
    """Finds the rule of every weight in a float32 file.

    Returns:
        The rule by signature and scope.

    Raises:
        ConversionError: A weight is no parameter of the module, or a rule meets no operator.
    """
    parameters = {n: p.detach().numpy() for n, p in module.named_parameters()}
    owners: dict[tuple[str, int], list[WeightRule]] = {}
    assignment: dict[tuple[str, str], WeightRule] = {}
    for use in graph.weight_uses(model):
        if use.weight is None:
            continue
        key = (use.operator, use.weight.buffer)
        if key not in owners:
            values = graph.float_values(model, use.weight)
            owners[key] = _owners(use, values, plan, parameters)
        # Two layers may hold equal values: then the operator's name decides.
        rule = min(owners[key], key=lambda rule: _position(rule, use.scope))
        assignment[use.signature, use.scope] = rule
    met = set(assignment.values())
    unmet = [r for r in plan.rules if r not in met and not _twin(r, met, parameters)]
    if unmet:
        raise unmet_rules(unmet)
    return assignment


def unmet_rules(rules: Iterable[WeightRule]) -> ConversionError:
    """Returns the error for rules that meet no operator."""
    names = listing(f"{r.parameter} ({r.operator})" for r in rules)
    return ConversionError(
        f"the converted graph has no operator for {names}",
        remedy="report it: the graph lost a weight, or folded it into another constant",
    )


def check(model: Any, assignment: Assignment) -> None:
    """Checks that every weight of a quantized file is stored as its rule says.

    Raises:
        ConversionError: One is not, with its parameter's name, found and expected.
    """
    problems = []
    seen = set()
    for use in graph.weight_uses(model):
        rule = assignment.get((use.signature, use.scope))
        if rule is None:
            continue
        seen.add((use.signature, use.scope))
        wanted, found = expected(rule.format, rule.shape), _found(use.weight)
        if wanted != found:
            problems.append(f"{rule.parameter} in {use.signature}: {found}, expected {wanted}")
    problems += [f"no operator {scope} in {name}" for name, scope in assignment.keys() - seen]
    if problems:
        raise ConversionError(
            "the quantized file does not follow the recipe:\n  " + listing(problems),
            remedy="report it with the recipe and the versions",
        )


def _owners(
    use: graph.WeightUse,
    values: np.ndarray[Any, Any],
    plan: QuantPlan,
    parameters: Mapping[str, np.ndarray[Any, Any]],
) -> list[WeightRule]:
    """Returns the rules whose parameter has just these values: one, but for twins."""
    candidates = [
        rule
        for rule in plan.rules
        if rule.operator == use.operator
        and rule.shape == values.shape
        and np.array_equal(parameters[rule.parameter][:1], values[:1])
        and np.array_equal(parameters[rule.parameter], values)
    ]
    if not candidates:
        raise ConversionError(
            f"a {use.operator} of {use.signature} has a weight {list(values.shape)} that is no"
            f" parameter of the model ({use.scope[-120:]})",
            remedy="report it: the graph folded a weight into another constant",
        )
    return candidates


def _position(rule: WeightRule, scope: str) -> int:
    """Returns where an operator's name mentions a rule's module; the end if it does not."""
    path = rule.parameter.removesuffix(".weight").split(".")
    leaf = path[-1]
    block = "" if rule.layer is None else rf"\w+_{rule.layer}/.*?"
    match = re.search(rf"{block}\w_{leaf}\b", scope)
    return match.end() if match else len(scope)


def _twin(
    rule: WeightRule, met: set[WeightRule], parameters: Mapping[str, np.ndarray[Any, Any]]
) -> bool:
    """Whether an equal weight was met with the same format: the converter merged the two."""
    return any(
        r.operator == rule.operator
        and r.format == rule.format
        and r.shape == rule.shape
        and np.array_equal(parameters[r.parameter], parameters[rule.parameter])
        for r in met
    )


def _by_format(assignment: Assignment) -> dict[tuple[Operator, WeightFormat], set[str]]:
    chosen: dict[str, WeightRule] = {}
    groups: dict[tuple[Operator, WeightFormat], set[str]] = {}
    for (_, scope), rule in assignment.items():
        other = chosen.setdefault(scope, rule)
        if other.format != rule.format:
            raise ConversionError(
                f"two operators share the name {scope}, and {other.parameter} and"
                f" {rule.parameter} want different formats",
                remedy="give both the same format",
            )
        if rule.format is not None:
            groups.setdefault((rule.operator, rule.format), set()).add(scope)
    return groups


def _granularity(fmt: WeightFormat) -> qtyping.QuantGranularity:
    if fmt.is_float:
        return qtyping.QuantGranularity.TENSORWISE
    if fmt.block_size:
        return qtyping.QuantGranularity[f"BLOCKWISE_{fmt.block_size}"]
    return qtyping.QuantGranularity.CHANNELWISE


def expected(fmt: WeightFormat | None, shape: tuple[int, int]) -> str:
    """Describes how a weight of this shape must be stored."""
    if fmt is None:
        return describe("float32", 0, None, False)
    if fmt.is_float:
        return describe(f"float{fmt.bits}", 0, None, True)
    rows, columns = shape
    scales = rows * (columns // fmt.block_size if fmt.block_size else 1)
    return describe(f"int{fmt.bits}", scales, fmt.block_size, not fmt.is_dynamic)


def _found(weight: graph.StoredWeight | None) -> str:
    if weight is None:
        return "no constant"
    return describe(weight.dtype, weight.scales, weight.block_size, weight.is_dequantized)


def describe(dtype: str, scales: int, block_size: int | None, is_dequantized: bool) -> str:
    """Describes how a weight is stored, for comparison and for messages."""
    blocks = f" in blocks of {block_size}" if block_size else ""
    mode = ", dequantized" if is_dequantized else ""
    return f"{dtype} with {scales} scales{blocks}{mode}"
