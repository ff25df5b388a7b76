"""Rules for what a bundle consists of, and for what its LlmMetadata says besides texts."""

from __future__ import annotations

from collections.abc import Iterator

from edgezoo_core.bundle import sections
from edgezoo_core.contract.report import Fault, rule
from edgezoo_core.contract.subject import Subject

_BUNDLE = "make the bundle anew with `edgezoo bundle`"
#: Types of sampler that LiteRT-LM 0.18.1 implements on a CPU; 0 is unspecified, 2 is TOP_P.
_SAMPLERS = (0, 2)
#: Types for which LiteRT-LM 0.18.1 has no template of its own and refuses to go without one.
_BARE = ("lfm2", "minicpm5")


@rule(
    "model-section",
    "error",
    why=f"LiteRT-LM looks for the one model of type {sections.PREFILL_DECODE}; of several it takes"
    " the last",
    remedy=_BUNDLE,
)
def model_section(subject: Subject) -> Iterator[Fault]:
    """The bundle has one language model."""
    found = len(subject.contents.models())
    if found != 1:
        yield Fault(f"{found} sections are one", "warning" if found else "error")


@rule(
    "llm-metadata",
    "error",
    why="LiteRT-LM 0.18.1 aborts without it: the app ends",
    remedy="`edgezoo check --fix --source …` writes it; so does `edgezoo bundle`",
    is_mendable=True,
)
def llm_metadata(subject: Subject) -> Iterator[Fault]:
    """The bundle has one LlmMetadata."""
    found = len(subject.contents.of_kind(sections.LLM_METADATA))
    if found != 1:
        yield Fault(f"{found} sections are one", "warning" if found else "error")


@rule(
    "model-type",
    "warning",
    why="LiteRT-LM guesses the type by what token 105 is, and may take another model's template",
    remedy="`edgezoo check --fix` sets generic_model; so does `edgezoo bundle`",
    is_mendable=True,
)
def model_type(subject: Subject) -> Iterator[Fault]:
    """llm_model_type is set, to one that has a template."""
    found = subject.llm.llm_model_type.WhichOneof("model_type")
    if found is None:
        yield Fault("it is not set", "warning")
    elif found in _BARE and not subject.llm.HasField("jinja_prompt_template"):
        yield Fault(f"it is {found}, which needs a jinja_prompt_template to start at all", "error")


@rule(
    "sampler-type",
    "error",
    why="LiteRT-LM 0.18.1 samples by TOP_P alone on a CPU: with GREEDY or TOP_K each turn fails"
    " unless the app brings a sampler of its own",
    remedy="`edgezoo check --fix` sets TOP_P, with k = 1 for GREEDY; so does `edgezoo bundle`",
    is_mendable=True,
)
def sampler_type(subject: Subject) -> Iterator[str]:
    """The default sampler is one that a CPU has."""
    if subject.llm.sampler_params.type not in _SAMPLERS:
        yield f"sampler_params.type is {subject.llm.sampler_params.type}"


RULES = (model_section, llm_metadata, model_type, sampler_type)
