"""What fields of config.json mean for every family: inert ones, and ones that change the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STORAGE = "the tensors say themselves how they are stored"
_TRAINING = "matters in training only"
_TOKENS = "belongs to tokenizer and generation, not to the graph"
_OUTPUTS = "chooses what a Python call returns, not what is computed"
_BOOKKEEPING = "names or describes the checkpoint"

#: Fields that no author has to read, with the reason why they cannot change the graph.
INERT: Mapping[str, str] = {
    "_attn_implementation_autoset": "chooses a kernel, not the mathematics",
    "_name_or_path": _BOOKKEEPING,
    "architectures": "chose the family",
    "attention_dropout": _TRAINING,
    "auto_map": "remote code is never run",
    "bos_token_id": _TOKENS,
    "chunk_size_feed_forward": "computes the same in pieces",
    "dtype": _STORAGE,
    "embd_pdrop": _TRAINING,
    "eos_token_id": _TOKENS,
    "finetuning_task": _BOOKKEEPING,
    "id2label": "belongs to classification heads",
    "initializer_range": _TRAINING,
    "label2id": "belongs to classification heads",
    "model_type": _BOOKKEEPING,
    "output_attentions": _OUTPUTS,
    "output_hidden_states": _OUTPUTS,
    "pad_token_id": _TOKENS,
    "problem_type": _BOOKKEEPING,
    "resid_pdrop": _TRAINING,
    "return_dict": _OUTPUTS,
    "tokenizer_class": _TOKENS,
    "torch_dtype": _STORAGE,
    "transformers_version": _BOOKKEEPING,
    "unsloth_fixed": _BOOKKEEPING,
    "unsloth_version": _BOOKKEEPING,
    "use_cache": _OUTPUTS,
}

#: Fields that change the mathematics wherever they occur, with the values that mean "not used".
#: Unless its author reads it, such a field is refused at any other value.
CHANGES_MATHEMATICS: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "final_logit_softcapping": (None,),
    "is_encoder_decoder": (None, False),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "mlp_bias": (None, False),
    "num_local_experts": (None, 0, 1),
    "qk_layernorm": (None, False),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": (None, 1, 1.0),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "use_bidirectional_attention": (None, False),
    "use_parallel_residual": (None,),
    "use_qk_norm": (None, False),
}
