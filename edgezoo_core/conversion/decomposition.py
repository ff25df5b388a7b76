"""Operators become the simpler ones that can be lowered, without autograd's machinery.

`ExportedProgram.run_decompositions` runs a program several times over, because it has to separate
mutations, aliases and gradients. A decoder's program has none of them: its operators are pure. One
run that writes down what the decompositions do gives the same graph, in half of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._functorch._aot_autograd.functional_utils import from_fun, to_fun
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.export import exported_program as stock
from torch.export.graph_signature import ExportGraphSignature, OutputKind
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta
from torch.utils import _pytree as pytree

Decompositions = Mapping[torch._ops.OperatorBase, Callable[..., Any]]


class PureProgram(torch.export.ExportedProgram):
    """A program that is decomposed in one run if its operators are pure."""

    @classmethod
    def of(cls, program: torch.export.ExportedProgram) -> PureProgram:
        """Returns the same program as one of this class."""
        pure: Any = copy.copy(program)  # the constructor would verify what passes left half done
        pure.__class__ = cls
        result: PureProgram = pure
        return result

    def run_decompositions(
        self, decomp_table: Any = None, decompose_custom_triton_ops: bool = False
    ) -> torch.export.ExportedProgram:
        """Returns the program in terms of fewer operators.

        Args:
            decomp_table: Operator -> what it is made of; None for torch's choice.
            decompose_custom_triton_ops: See torch.
        """
        if decomp_table and _is_pure(self):
            decomposed = _decompose(self.graph_module, decomp_table)
            if not any(n.op == "get_attr" for n in decomposed.graph.nodes):
                return _program(self, decomposed)
        made: torch.export.ExportedProgram = super().run_decompositions(
            decomp_table, decompose_custom_triton_ops
        )
        return made


def _is_pure(program: torch.export.ExportedProgram) -> bool:
    """Whether nothing is written to, and all shapes are static."""
    nodes = list(program.graph.nodes)
    outputs: Any = program.graph.output_node().args[0]
    holders = [n.meta.get("val") for n in nodes if n.op == "placeholder"]
    schemas = [n.target._schema for n in nodes if isinstance(n.target, torch._ops.OpOverload)]
    return (
        all(isinstance(v, FakeTensor) for v in holders)
        and all(isinstance(o, fx.Node) for o in outputs)
        and not program.range_constraints
        and not any(n.op == "get_attr" for n in nodes)
        and not any(s.is_mutable for s in schemas)
        and all(s.kind is OutputKind.USER_OUTPUT for s in program.graph_signature.output_specs)
    )


def _decompose(module: fx.GraphModule, table: Decompositions) -> fx.GraphModule:
    holders = _placeholders(module)
    values = [n.meta["val"] for n in holders]
    mode: Any = detect_fake_mode(values)
    implicit: Any
    explicit: Any
    implicit, explicit = stock._split_decomp_table_to_cia_and_python_decomp(dict(table))

    def run(*inputs: torch.Tensor) -> Any:
        with preserve_node_meta():  # names of layers become names of tensors
            held = pytree.tree_map(to_fun, inputs)
            outputs = fx.Interpreter(module).run(*held, enable_io_processing=False)
            return pytree.tree_map(from_fun, outputs)

    with (
        mode,
        stock._override_composite_implicit_decomp(implicit),
        tracing(TracingContext(mode)),
        torch.no_grad(),
        enable_python_dispatcher(),
        FunctionalTensorMode(export=True),  # what aliases becomes plain
    ):
        made = make_fx(run, decomposition_table=explicit)(*values)
    made.graph.eliminate_dead_code()
    made.meta.update(module.meta)
    if holders:
        _take_names(_placeholders(made), holders)
    return made


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


def _take_names(nodes: list[fx.Node], named: list[fx.Node]) -> None:
    """Gives placeholders the names that the program's signature knows."""
    names = {n.name for n in named}
    # Set outright: a graph never gives out a name again that it has given once.
    for number, node in enumerate(n for n in nodes[0].graph.nodes if n.name in names):
        node.name = f"renamed_{number}"
    for node, like in zip(nodes, named, strict=True):
        node.name, node.target, node.meta = like.name, like.target, dict(like.meta)


def _program(program: torch.export.ExportedProgram, module: fx.GraphModule) -> PureProgram:
    before: Any = program.graph.output_node().args[0]
    after: Any = module.graph.output_node().args[0]
    names = {a.name: b.name for a, b in zip(before, after, strict=True)}
    outputs: list[Any] = [
        replace(s, arg=replace(s.arg, name=names[s.arg.name]))
        for s in program.graph_signature.output_specs
    ]
    return PureProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(list(program.graph_signature.input_specs), outputs),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
    )
