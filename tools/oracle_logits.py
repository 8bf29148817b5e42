"""Compute the logits of small models by Hugging Face's transformers, as golden files for tests.

It answers whether a family's layers are computed as its authors meant them. Each case is a model
of a real family with seeded weights; transformers computes it in float32 on the CPU from a folder
as the hub has them, and the tests compute it from the same folder after `edgellama quantize`. Of
F16 and Q8_0 the oracle takes the weights' rounded values, which the gguf package makes. Kept are
some rows and some columns of the logits.

    pip install -e ".[oracle]"
    python tools/oracle_logits.py                 # writes tests/model/golden_logits/*.npz
    python tools/oracle_logits.py qwen3_moe phi3  # some of them

    python tools/oracle_logits.py --measure       # prints how far this edgellama is from them
    python tools/oracle_logits.py --gguf m.gguf   # and from transformers' own reading of a GGUF

The tests need neither torch nor transformers, nor does --measure: it needs what the tests do. Of
GGUF files transformers 5.24 leaves out RoPE's scaling, Phi 3's window, and widths of heads and
experts that are not its defaults.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "model" / "golden_logits"
KINDS = ("F32", "F16", "Q8_0")
LENGTHS = (5, 70, 200)  # attention adds up values in tiles of 64 positions
LAST_ROWS_KEPT = 8  # of each length, and the rows at the borders of tiles and windows
BORDERS = (0, 1, 46, 47, 48, 63, 64, 65, 127, 128)
COLUMN_STEP = 5
VOCABULARY = 320

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 280,
    "eos_token_id": 281,
    "pad_token_id": 281,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + index / 8 for index in range(12)],
    "long_factor": [2.0 + index for index in range(12)],
}
GEMMA_3: dict[str, Any] = {
    **COMMON,
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 7,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 48,
    "sliding_window_pattern": 6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "tie_word_embeddings": True,
}
del GEMMA_3["hidden_act"]
QWEN_3 = {**COMMON, "head_dim": 32, "rope_theta": 1000000.0}

CASES: dict[str, dict[str, Any]] = {
    "llama_2": {**COMMON, "model_type": "llama", "num_key_value_heads": 4},
    "llama_3": {
        **COMMON,
        "model_type": "llama",
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA_3,
        "tie_word_embeddings": True,
    },
    "llama_linear": {
        **COMMON,
        "model_type": "llama",
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "mistral": {**COMMON, "model_type": "mistral", "head_dim": 32, "sliding_window": None},
    "qwen2": {
        **COMMON,
        "model_type": "qwen2",
        "attention_bias": True,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    "qwen3": {**QWEN_3, "model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_moe": {
        **QWEN_3,
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "gemma3": GEMMA_3,
    "gemma3_linear": {**GEMMA_3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi3": {**COMMON, "model_type": "phi3", "num_key_value_heads": 4, "sliding_window": 47},
    "phi3_long": {
        **COMMON,
        "model_type": "phi3",
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.75,
        "rope_scaling": LONGROPE,
        "original_max_position_embeddings": 256,
        "max_position_embeddings": 4096,
        "sliding_window": None,
    },
}


# ---- what both sides make by themselves


def tokens(length: int) -> list[int]:
    """Return the ids of a text of that length; those of other lengths begin otherwise."""
    return [(number * number * 7 + number * 31 + length) % 280 for number in range(length)]


def rows_kept(length: int) -> list[int]:
    """Return which positions' logits are kept."""
    borders = [place for place in BORDERS if place < length]
    return sorted({*borders, *range(max(0, length - LAST_ROWS_KEPT), length)})


def weights(case: Mapping[str, Any]) -> dict[str, Floats]:
    """Return the weights under the names that the hub's files have.

    Their bits follow from the names by integer arithmetic alone, so that every machine and every
    NumPy makes the same. Scores of attention are so large that positions count.
    """
    return {name: _numbers(name, shape, case) for name, shape in _shapes(case).items()}


def _shapes(case: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    family, width = case["model_type"], case["hidden_size"]
    heads, kv_heads = case["num_attention_heads"], case["num_key_value_heads"]
    head = case.get("head_dim", width // heads)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (case["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not case["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (case["vocab_size"], width)
    for layer in range(case["num_hidden_layers"]):
        block: dict[str, tuple[int, ...]] = {"input_layernorm": (width,)}
        rows = {"q_proj": heads * head, "k_proj": kv_heads * head, "v_proj": kv_heads * head}
        if family == "phi3":
            rows = {"qkv_proj": sum(rows.values())}
        block |= {f"self_attn.{name}": (count, width) for name, count in rows.items()}
        block["self_attn.o_proj"] = (width, heads * head)
        block["post_attention_layernorm"] = (width,)
        if family in ("qwen3", "qwen3_moe", "gemma3_text"):
            block |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
        if family == "gemma3_text":
            block |= {"pre_feedforward_layernorm": (width,), "post_feedforward_layernorm": (width,)}
        block |= _unit_shapes(case)
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in block.items()}
        if family == "qwen2":
            shapes |= {f"{prefix}self_attn.{name}.bias": (count,) for name, count in rows.items()}
    return shapes


def _unit_shapes(case: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner = case["hidden_size"], case["intermediate_size"]
    if case["model_type"] == "phi3":
        return {"mlp.gate_up_proj": (2 * inner, width), "mlp.down_proj": (width, inner)}
    units, router = ["mlp."], {}
    if case["model_type"] == "qwen3_moe":
        inner = case["moe_intermediate_size"]
        units = [f"mlp.experts.{expert}." for expert in range(case["num_experts"])]
        router = {"mlp.gate": (case["num_experts"], width)}
    shapes: dict[str, tuple[int, ...]] = dict(router)
    for unit in units:
        shapes |= {f"{unit}{name}_proj": (inner, width) for name in ("gate", "up")}
        shapes[f"{unit}down_proj"] = (width, inner)
    return shapes


def _numbers(name: str, shape: tuple[int, ...], case: Mapping[str, Any]) -> Floats:
    count = int(np.prod(shape))
    mixed = np.arange(count, dtype=np.uint32) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    centred = (mixed >> np.uint32(7)).astype(np.int32) - np.int32(1 << 24)
    even = centred.astype(np.float32) * np.float32(2.0**-24)  # -1..1, of deviation 0.577
    mean, deviation = _spread(name, shape, case)
    spread = np.float32(deviation / 0.5773502588)
    return (np.float32(mean) + even * spread).reshape(shape).astype(np.float32)


def _spread(name: str, shape: tuple[int, ...], case: Mapping[str, Any]) -> tuple[float, float]:
    gemma = case["model_type"] == "gemma3_text"
    if name.endswith(".bias"):
        return 0.0, 0.5
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return (0.5 if gemma else 1.5), 0.2
    if len(shape) == 1:
        return (0.0 if gemma else 1.0), 0.2
    keeping = float(shape[1]) ** -0.5
    if "embed_tokens" in name:
        return 0.0, keeping if gemma else 1.0
    return 0.0, keeping * (1.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0)


# ---- what transformers makes of it


def oracle_logits(case: Mapping[str, Any], kind: str) -> dict[str, Floats]:
    """Return float32 [rows kept, columns kept] by key, as a golden file holds them."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        _write_folder(Path(folder), case, kind)
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    if any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        sys.exit(f"transformers reads other tensors than were written: {loading}")
    return _kept(model, kind)


def _kept(model: Any, kind: str) -> dict[str, Floats]:
    found = {}
    for length in LENGTHS:
        logits = _logits(model, tokens(length))
        found[f"{kind} {length}"] = logits[rows_kept(length), ::COLUMN_STEP]
    return found


def _logits(model: Any, ids: Sequence[int]) -> Floats:
    import torch

    with torch.no_grad():
        logits: Floats = model.eval()(torch.tensor([list(ids)])).logits[0].float().numpy()
    return logits


def _write_folder(folder: Path, case: Mapping[str, Any], kind: str) -> None:
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps(case), encoding="utf-8")
    rounded = {name: _rounded(name, values, kind) for name, values in weights(case).items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})


def _rounded(name: str, values: Floats, kind: str) -> Floats:
    """Return the values that a matrix has in a GGUF of that kind; the router of experts is F32."""
    import gguf

    if values.ndim == 1 or kind == "F32" or name.endswith("mlp.gate.weight"):
        return values
    if kind == "F16":
        return values.astype(np.float16).astype(np.float32)
    quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    wide: Floats = gguf.quants.dequantize(quantized, gguf.GGMLQuantizationType[kind])
    return wide


def compare_gguf(path: Path) -> None:
    """Print how far this edgellama's logits are from those of transformers' own GGUF reader."""
    import edgellama_kernels
    import torch
    from transformers import AutoModelForCausalLM

    sys.path.insert(0, str(ROOT / "tests"))
    from model_running import Ring, packed_model

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    own = packed_model(path)
    ids = tokens(max(LENGTHS))
    expected = _logits(model, ids)
    kernels = edgellama_kernels.load("numpy")
    found = Ring(own, kernels, (own.config.layers,)).prefill(ids, [len(ids)])
    error = np.abs(found - expected)
    print(
        f"{path.name}: deviation of logits {expected.std():.3f}, "
        f"error mean {error.mean():.2g}, greatest {error.max():.2g}"
    )


def measure(names: Sequence[str]) -> None:
    """Print a table of the differences from the golden files, over the logits' deviation."""
    import edgellama_kernels

    sys.path.insert(0, str(ROOT / "tests"))
    import family_models

    kernels = edgellama_kernels.load("auto", 2)
    print("| model | " + " | ".join(f"{kind}: mean, greatest" for kind in KINDS) + " |")
    print("|---" * (1 + len(KINDS)) + "|")
    for name in names:
        cells = []
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                model = family_models.model_of(Path(folder), name, kind)
                found = family_models.difference(model, kernels, name, kind)
            cells.append(f"{found.mean:.2g}, {found.greatest:.2g}")
        print(f"| `{name}` | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all where none is named")
    parser.add_argument("--gguf", type=Path, help="compare this file instead")
    parser.add_argument("--measure", action="store_true", help="compare the golden files instead")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        sys.exit(f"there is no case {min(unknown)}; there are {', '.join(CASES)}")
    names = arguments.cases or list(CASES)
    if arguments.gguf:
        compare_gguf(arguments.gguf)
        return
    if arguments.measure:
        measure(names)
        return
    for name in names:
        found: dict[str, Any] = {}
        for kind in KINDS:
            found |= oracle_logits(CASES[name], kind)
        path = GOLDEN / f"{name}.npz"
        np.savez_compressed(path, **found)
        deviations = [float(values.std()) for values in found.values()]
        print(f"{path.name}: {path.stat().st_size} bytes, deviations {np.round(deviations, 2)}")


if __name__ == "__main__":
    main()
