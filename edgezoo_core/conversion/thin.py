"""ai-edge-quantizer decides the graph, on weights of one row each.

What the quantizer does to a graph depends on the rules and the operators, not on how large a
weight is: it retypes the weight, adds its scales, sets a DEQUANTIZE before operators that compute
in float32. So it is given every weight as [1, 256], in a second instead of minutes, and the true
shapes are put back into what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from edgezoo_core.conversion import quantization
from edgezoo_core.conversion.floatgraph import WEIGHT_INPUT, WEIGHT_OPERATORS, Constant
from edgezoo_core.conversion.merging import MergedGraph
from edgezoo_core.conversion.reducing import Reduced
from edgezoo_core.conversion.restoring import (
    THIN_COLUMNS,
    QuantizedGraph,
    restore,
    weight_operators,
)
from edgezoo_core.errors import ConversionError
from edgezoo_core.types import QuantPlan, WeightRule


def quantize(
    merged: MergedGraph, plan: QuantPlan, shapes: Mapping[str, tuple[int, ...]]
) -> QuantizedGraph:
    """Applies a plan.

    Args:
        merged: The float32 graph; used up.
        plan: The format of every weight.
        shapes: The shape of every parameter.

    Raises:
        ConversionError: A weight has no rule, a rule meets no weight, or the quantizer did not do
            what the rule says.
    """
    rules = _assign(merged, plan)
    names = _thin(merged, rules, shapes)
    model = merged.model
    formats = {rule.format for rule in rules.values() if rule.format is not None}
    if formats:
        # With those that stay float32: the quantizer must see who shares a weight.
        reduced = Reduced(model, rules.keys())
        content = flatbuffer_utils.convert_object_to_bytearray(reduced.model)
        groups = [
            (f"^{f.name}@", operator, f)
            for f in sorted(formats, key=lambda f: f.name)
            for operator in sorted(set(WEIGHT_OPERATORS.values()))
        ]
        quantized = quantization.run(bytes(content), groups, plan.name)
        model = reduced.splice(schema.ModelT.InitFromPackedBuf(quantized, 0))
    return restore(model, merged, rules, names, shapes)


def _assign(merged: MergedGraph, plan: QuantPlan) -> dict[tuple[int, int], WeightRule]:
    """Finds the rule of each weight operator: (subgraph, position) -> rule."""
    rules = {(rule.parameter, rule.operator): rule for rule in plan.rules}
    assigned: dict[tuple[int, int], WeightRule] = {}
    for number, position, op in weight_operators(merged.model, len(merged.model.signatureDefs)):
        held = merged.constants.get((number, int(op.inputs[WEIGHT_INPUT])))
        if held is None:
            continue  # the product of two activations
        code = merged.model.operatorCodes[op.opcodeIndex].builtinCode
        rule = rules.get((held.parameter, WEIGHT_OPERATORS[code]))
        if rule is None:
            raise ConversionError(
                f"recipe {plan.name} has no rule for {held.parameter} in {WEIGHT_OPERATORS[code]}",
                remedy="correct the plugin's quant_recipe hook",
            )
        assigned[number, position] = rule
    unmet = [r for r in plan.rules if r not in set(assigned.values())]
    if unmet:
        raise quantization.unmet_rules(unmet)
    return assigned


def _thin(
    merged: MergedGraph,
    rules: Mapping[tuple[int, int], WeightRule],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[bytes, bytes]:
    """Gives each matrix one row of its own values; returns token -> name of each tensor.

    Names become tokens that carry the format, so that the quantizer's rules name what they mean.
    """
    model = merged.model
    names: dict[bytes, bytes] = {}
    for number, subgraph in enumerate(model.subgraphs[: len(model.signatureDefs)]):
        for index, tensor in enumerate(subgraph.tensors):
            token = b"t%d_%d_" % (number, index)
            names[token] = tensor.name
            tensor.name = token
    for number, position, op in weight_operators(model, len(model.signatureDefs)):
        rule = rules.get((number, position))
        if rule and rule.format:
            output = model.subgraphs[number].tensors[op.outputs[0]]
            output.name = rule.format.name.encode() + b"@" + output.name
    random = np.random.default_rng(0)
    buffers: dict[Constant, int] = {}
    for (number, index), held in merged.constants.items():
        tensor = model.subgraphs[number].tensors[index]
        if held not in buffers:
            # Values of its own: the quantizer makes one of buffers that are equal.
            size = THIN_COLUMNS if held.is_matrix else int(held.stop or 0) - int(held.start or 0)
            buffer = schema.BufferT()
            buffer.data = random.random(size, np.float32).view(np.uint8)
            model.buffers.append(buffer)
            buffers[held] = len(model.buffers) - 1
        tensor.buffer = buffers[held]
        if held.is_matrix:
            if len(shapes[held.parameter]) != 2:
                raise ConversionError(
                    f"{held.parameter} has {len(shapes[held.parameter])} dimensions, expected 2",
                    remedy="use --engine litert",
                )
            tensor.shape = np.array([1, THIN_COLUMNS], np.int32)
    return names
