"""Small sound files of each kind: what mutations begin with."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

SLOTS, HEADS, DIM, VOCABULARY = 16, 2, 4, 300

_MODEL = """
schema = 1
hook_api = 1
family = "fake"
architectures = ["FakeForCausalLM"]

[conformance]
capabilities = ["grouped-query"]
config = { hidden_size = 64, rope = { base = 1e4 } }

[[models]]
id = "fake-1b"
title = "Fake 1B"
checkpoint = "org/fake-1b"
revision = "main"
license = "mit"
gated = false
parameters = 1000
context_length = 2048
recipes = ["none", "dynamic_int8"]
default_recipe = "dynamic_int8"
signatures = { prefill_lengths = [8], kv_cache_length = 64, kv_layout = "default" }
"""

_REGISTRY = """
schema = 1

[[models]]
id = "fake-1b"
family = "fake"
distribution = "edgezoo-fake"
summary = "A model"
"""

_RECIPE = """
name = "mixed"
default = "dynamic_int8"
embedding = "weight_only_int8"
feedforward = "dynamic_int4_block32"

[layers."0-1"]
feedforward = "dynamic_int8"

[layers.-1]
qkv = "none"
"""

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "tie_word_embeddings": False,
    "eos_token_id": [1, 2],
    "torch_dtype": "bfloat16",
}

_ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "rank_pattern": {"layers.0": 2},
    "alpha_pattern": {},
    "target_modules": ["q_proj"],
    "modules_to_save": None,
    "init_lora_weights": True,
    "use_rslora": False,
    "bias": "none",
}

_TEMPLATE = (
    "{% if not messages %}{{ raise_exception('none') }}{% endif %}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{{ '<|' + m['role'] + '|>' }}{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for p in m.content %}{{ p.text | tojson }}{% endfor %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|model|>' ~ eos_token }}{% endif %}"
    "{% endfor %}{% macro x(y) %}{{ y * 3 }}{% endmacro %}{{ x('a') }}{% for i in range(3) %}"
    "{{ i }}{% endfor %}"
)


def seeds() -> dict[str, list[bytes]]:
    """Returns the first inputs of each target."""
    from fuzz import folding, foreign

    return {
        "safetensors": [
            safetensors({"a": ("F32", [2, 2], 16), "b.c": ("BF16", [3], 6)}),
            safetensors({}, {"format": "pt"}),
            safetensors({"e": ("F4", [4], 2), "z": ("I64", [0, 5], 0)}),
        ],
        "index": [_json({"metadata": {"total_size": 4}, "weight_map": {"a": "a.safetensors"}})],
        "pytorch": foreign.pytorch_files(),
        "config": [_json(CONFIG), _json(_phi()), _json({**CONFIG, "rope_parameters": {}})],
        "authored": [_json(CONFIG), _json(_phi())],
        "cards": [_MODEL.encode()],
        "registry": [_REGISTRY.encode()],
        "recipe": [_RECIPE.encode()],
        "adapter": [_json(_ADAPTER)],
        "adapter_weights": [
            safetensors(
                {
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (
                        "F32",
                        [2, 4],
                        32,
                    ),
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (
                        "F32",
                        [4, 2],
                        32,
                    ),
                }
            )
        ],
        "manifest": [_json(manifest())],
        "tflite": [tflite(), tflite(with_weight=False)],
        "litertlm": [folding.fold(litertlm())],
        "cache_record": [_json(record())],
        "template": [_TEMPLATE.encode()],
        "tokenizer_json": [tokenizer_json().encode()],
        "sentencepiece": foreign.sentencepiece_files(),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _phi() -> dict[str, Any]:
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 300,
        "max_position_embeddings": 256,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }


def safetensors(
    tensors: dict[str, tuple[str, list[int], int]], metadata: dict[str, str] | None = None
) -> bytes:
    """Returns a file of zeros: name -> dtype, shape, bytes."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = _json(header)
    return len(text).to_bytes(8, "little") + text + bytes(end)


def manifest() -> dict[str, Any]:
    """Returns a manifest with every field that is read."""
    file = {"name": "config.json", "size_bytes": 10, "sha256": "0" * 64}
    return {
        "schema": 1,
        "created": "2026-01-01T00:00:00Z",
        "artifact": {"file": "model.tflite", "size_bytes": len(tflite()), "sha256": "0" * 64},
        "bundle": {"file": "model.litertlm", "size_bytes": 9, "sha256": "0" * 64},
        "model": {"family": "fake", "card_id": None},
        "checkpoint": {
            "repo": None,
            "folder": "/nowhere/at/all",
            "commit": None,
            "files": [file],
        },
        "adapters": [{"source": "/nowhere", "weight": 1.0, "files": [file]}],
        "options": {
            "prefill_lengths": [8],
            "kv_cache_length": SLOTS,
            "kv_layout": "transposed",
            "mask_as_input": True,
        },
        "recipe": {"name": "none", "weights": {"embedding": "none", "layers.0.qkv": "fp16"}},
        "engine": "edgezoo",
        "versions": {"torch": "2.13.0"},
    }


def record() -> dict[str, Any]:
    """Returns the record of an entry of the cache that holds no file."""
    import hashlib

    return {
        "schema": 1,
        "kind": "trace",
        "key": hashlib.sha256(b"{}").hexdigest(),
        "created": 1.7e9,
        "parts": {},
        "about": {"model": "a"},
        "files": {},
    }


def tflite(*, with_weight: bool = True) -> bytes:
    """Returns a decoder of two signatures, with one quantized weight or none."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    dtypes = {"float32": schema.TensorType.FLOAT32, "int32": schema.TensorType.INT32}
    buffers = [schema.BufferT()]
    codes = [schema.OperatorCodeT(deprecatedBuiltinCode=9, builtinCode=9, version=1)]
    model = schema.ModelT(
        version=3, subgraphs=[], signatureDefs=[], buffers=buffers, operatorCodes=codes
    )
    for index, (name, length) in enumerate((("prefill_4", 4), ("decode", 1))):
        graph = schema.SubGraphT(name=name, tensors=[], inputs=[], outputs=[], operators=[])
        signature = schema.SignatureDefT(
            signatureKey=name, subgraphIndex=index, inputs=[], outputs=[]
        )
        caches: dict[str, tuple[str, tuple[int, ...]]] = {
            "kv_cache_k_0": ("float32", (1, HEADS, SLOTS, DIM)),
            "kv_cache_v_0": ("float32", (1, HEADS, DIM, SLOTS)),
        }
        inputs: dict[str, tuple[str, tuple[int, ...]]] = {
            "tokens": ("int32", (1, length)),
            "input_pos": ("int32", (length,)),
            "mask": ("float32", (1, 1, length, SLOTS)),
            **caches,
        }
        outputs = dict(caches)
        if name == "decode":
            outputs["logits"] = ("float32", (1, 1, VOCABULARY))
        for tensors, numbers, maps in (
            (inputs, graph.inputs, signature.inputs),
            (outputs, graph.outputs, signature.outputs),
        ):
            for tensor, (dtype, shape) in tensors.items():
                maps.append(schema.TensorMapT(name=tensor, tensorIndex=len(graph.tensors)))
                numbers.append(len(graph.tensors))
                graph.tensors.append(
                    schema.TensorT(shape=list(shape), type=dtypes[dtype], name=tensor, buffer=0)
                )
        if with_weight:
            if index == 0:
                buffers.append(schema.BufferT(data=list(bytes(8))))
            weight = schema.TensorT(
                shape=[2, 4],
                type=schema.TensorType.INT8,
                name="transformer_blocks.0/attn/q",
                buffer=1,
                quantization=schema.QuantizationParametersT(
                    scale=[0.5, 0.25], zeroPoint=[0, 0], quantizedDimension=0
                ),
            )
            made = schema.TensorT(shape=[1, 2], type=dtypes["float32"], name="TransformerBlock_0/")
            graph.tensors += [weight, made]
            number = len(graph.tensors)
            graph.operators.append(
                schema.OperatorT(opcodeIndex=0, inputs=[0, number - 2, -1], outputs=[number - 1])
            )
        model.subgraphs.append(graph)
        model.signatureDefs.append(signature)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def litertlm() -> bytes:
    """Returns a bundle of the decoder, with metadata and a tokenizer."""
    from litert_lm_builder import litertlm_builder
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    from edgezoo_core.bundle import metadata
    from edgezoo_core.decoder import KvCache

    message = llm_metadata_pb2.LlmMetadata(max_num_tokens=SLOTS)
    message.llm_model_type.generic_model.SetInParent()
    message.start_token.token_ids.ids.append(0)
    message.stop_tokens.add().token_ids.ids.append(1)
    message.stop_tokens.add().token_str = "</s>"
    message.jinja_prompt_template = _TEMPLATE
    message.prompt_templates.user.prefix = "<u>"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts = {
            "llm.pb": message.SerializeToString(),
            "executor.pb": metadata.executor(KvCache(1, SLOTS, SLOTS, 2, 3)),
            "tokenizer.json": tokenizer_json().encode(),
            "model.tflite": tflite(),
        }
        for name, content in parts.items():
            (folder / name).write_bytes(content)
        builder = litertlm_builder.LitertLmFileBuilder()
        builder.add_llm_metadata(str(folder / "llm.pb"))
        builder.add_executor_metadata(str(folder / "executor.pb"))
        builder.add_hf_tokenizer(str(folder / "tokenizer.json"))
        kind = litertlm_builder.TfLiteModelType.PREFILL_DECODE
        builder.add_tflite_model(str(folder / "model.tflite"), kind)
        output = io.BytesIO()
        builder.build(output)
    return output.getvalue()


def tokenizer_json() -> str:
    """Returns a tokenizer of single bytes that puts <s> before a text."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    letters = ["a", "b", "e", "l", "o", "H", "\u0120"]
    tokens = ["<s>", "</s>", *letters, "lo"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [("l", "o")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in tokens[:2]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made: str = tokenizer.to_str()
    return made
