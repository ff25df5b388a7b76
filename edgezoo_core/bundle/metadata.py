"""What a bundle tells LiteRT-LM about the model: tokens, prompts, sampling, and the KV cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgezoo_core import texts
from edgezoo_core.bundle.prompts import Prompts, stop_text
from edgezoo_core.bundle.turns import Turn
from edgezoo_core.bundle.vocabulary import Vocabulary
from edgezoo_core.decoder import Decoder, KvCache
from edgezoo_core.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn unless the app says otherwise; top_k 1 takes the likeliest token."""

    temperature: float
    top_k: int
    top_p: float


def read_json(path: Path) -> Mapping[str, Any]:
    """Reads a JSON object; a file that is not there is an empty one.

    Raises:
        ArtifactError: The file is no JSON object.
    """
    try:
        found = texts.read_json(path, texts.CONFIG_BYTES)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise ArtifactError(f"{path} is no JSON object: {e}", remedy="correct it") from e
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is no JSON object", remedy="correct it")
    return found


def stop_tokens(
    vocabulary: Vocabulary, prompts: Prompts, configs: Iterable[Mapping[str, Any]]
) -> tuple[int, ...]:
    """Returns the ids that end an answer, ascending.

    Args:
        vocabulary: Names the end of a text.
        prompts: Names what the chat template puts behind an answer.
        configs: generation_config.json and config.json.
    """
    found = {vocabulary.end_token}
    for config in configs:
        value = config.get("eos_token_id")
        found.update(value if isinstance(value, list) else [value])
    ending = stop_text(prompts.end_of_answer, vocabulary.added)
    found.add(vocabulary.added.get(ending.lstrip()))
    return tuple(sorted(t for t in found if isinstance(t, int)))


def sampling(generation: Mapping[str, Any], vocabulary: int) -> Sampling | None:
    """Returns what generation_config.json asks for, as transformers reads it; None if it is empty.

    Args:
        generation: The file's fields.
        vocabulary: Number of ids, which stands for "all of them".
    """
    if not generation:
        return None
    if not generation.get("do_sample"):
        return Sampling(1.0, 1, 1.0)

    # Defaults of transformers' GenerationConfig where sampling is on.
    def value(name: str, default: float) -> float:
        found = generation.get(name)
        return default if found is None else float(found)

    return Sampling(
        value("temperature", 1.0), int(value("top_k", 50)) or vocabulary, value("top_p", 1.0)
    )


def llm(
    vocabulary: Vocabulary,
    prompts: Prompts,
    stop: Iterable[int],
    drawn: Sampling | None,
    decoder: Decoder,
) -> bytes:
    """Returns the serialized LlmMetadata.

    Args:
        vocabulary: The start token, and which ids there are at all.
        prompts: Prompt templates.
        stop: Ids that end an answer.
        drawn: Defaults of the sampler.
        decoder: How many tokens fit, and which ids it tells apart.
    """
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2

    message = llm_metadata_pb2.LlmMetadata(max_num_tokens=decoder.cache.capacity)
    message.llm_model_type.generic_model.SetInParent()
    if vocabulary.start_token is not None:
        message.start_token.token_ids.ids.append(vocabulary.start_token)
    for token in stop:
        message.stop_tokens.add().token_ids.ids.append(token)
    _set_prompts(message, prompts)
    if drawn:
        parameters = message.sampler_params
        # The only kind that LiteRT-LM 0.18 implements on a CPU: GREEDY and TOP_K are refused.
        parameters.type = sampler_params_pb2.SamplerParameters.TOP_P
        parameters.temperature, parameters.k = drawn.temperature, drawn.top_k
        parameters.p = drawn.top_p
    # Phi-2's head is longer than its vocabulary: what no text stands for is never chosen.
    message.suppress_tokens.ids.extend(range(vocabulary.size, decoder.vocabulary))
    return bytes(message.SerializeToString(deterministic=True))


def executor(cache: KvCache) -> bytes:
    """Returns the serialized ExecutorMetadata: which axis of each cache holds the slots.

    Without it LiteRT-LM takes the default layout's head count for the capacity.
    """
    from litert_lm_builder.runtime.proto import executor_metadata_pb2 as proto

    message = proto.ExecutorMetadata()
    kinds = (
        ("k", proto.StateBuffer.TYPE_GLOBAL_KEY_CACHE, cache.key_axis),
        ("v", proto.StateBuffer.TYPE_GLOBAL_VALUE_CACHE, cache.value_axis),
    )
    for layer in range(cache.layers):
        for letter, kind, axis in kinds:
            name = f"kv_cache_{letter}_{layer}"
            message.llm_executor_metadata.state_buffers.add(
                prefill_input_name=name,
                prefill_output_name=name,
                decode_input_name=name,
                decode_output_name=name,
                type=kind,
                sequence_axis=axis,
            )
    return bytes(message.SerializeToString(deterministic=True))


def _set_prompts(message: Any, prompts: Prompts) -> None:
    if prompts.jinja is not None:
        message.jinja_prompt_template = prompts.jinja
    if prompts.turns is None:
        return
    # A session without a conversation reads these even where there is a template.
    templates = message.prompt_templates
    _set_affixes(templates.user, prompts.turns.user)
    _set_affixes(templates.model, prompts.turns.model)
    if prompts.turns.system:
        _set_affixes(templates.system, prompts.turns.system)


def _set_affixes(affixes: Any, turn: Turn) -> None:
    affixes.prefix, affixes.suffix = turn.prefix, turn.suffix
