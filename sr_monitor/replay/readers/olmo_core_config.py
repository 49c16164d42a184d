"""The architecture of a model of OLMo-core, as the config of Hugging Face's Olmo2, Olmo3 or Llama.

Whatever those models cannot do is refused by name, so that none is measured as another one.

    entries = to_hugging_face(experiment["model"], "runs/olmo/step1000")
"""

import math
from collections.abc import Iterator

from sr_monitor.errors import InputError
from sr_monitor.replay.readers.foreign import Entries, Known, unlike

_MOST_BLOCKS = 10_000
_MOST_CHARACTERS = 400

# What those models have too.
_ASIDE: Known = {
    **dict.fromkeys(("_CLASS_", "type", "dtype", "dropout", "backend", "use_flash")),
    **dict.fromkeys(("full_precision", "loss_implementation", "freeze_params")),
    **dict.fromkeys(("init_method", "init_seed", "init_std", "embedding_init_std")),
}
_MODEL: Known = {
    **dict.fromkeys(("d_model", "vocab_size", "n_layers", "block", "lm_head")),
    **dict.fromkeys(("tie_word_embeddings", "block_overrides")),
    "name": ("default",),
}
_BLOCK: Known = {
    **dict.fromkeys(("sequence_mixer", "attention", "layer_norm", "feed_forward")),
    "name": ("default", "reordered_norm"),
}
_ATTENTION: Known = {
    **dict.fromkeys(("n_heads", "n_kv_heads", "head_dim", "rope", "qk_norm", "sliding_window")),
    "name": ("default",),
}
_ROPE: Known = {
    **dict.fromkeys(("theta", "scaling")),
    "name": ("default",),
    "partial_rotary_factor": (1.0,),
}
_NORM: Known = {"eps": None, "name": ("rms", "fused_rms", "cute_rms")}
_FEED_FORWARD: Known = {"hidden_size": None, "name": ("default",), "activation": ("silu",)}
_HEAD: Known = {"layer_norm": None, "name": ("default",)}

Windows = list[int | None]
"""The width of each block's window; None where it sees all."""


def to_hugging_face(model: Entries, source: str) -> Entries:
    """Return the entries of the config of the same model, of which `source` is a checkpoint."""
    if strange := list(_strange(model)):
        raise InputError(
            f"{source!r} was trained with {', '.join(strange)[:_MOST_CHARACTERS]}, which Hugging "
            "Face's Olmo2, Olmo3 and Llama do not have; measure it while it trains "
            "(sr_monitor_olmo_core)"
        )
    block, attention = model["block"], _attention(model["block"])
    windows = _windows(attention, model["n_layers"])
    own_width = attention.get("head_dim")
    return {
        "model_type": _kind(block, attention, windows),
        "vocab_size": model["vocab_size"],
        "hidden_size": model["d_model"],
        "intermediate_size": block["feed_forward"]["hidden_size"],
        "num_hidden_layers": model["n_layers"],
        "num_attention_heads": attention["n_heads"],
        "num_key_value_heads": attention.get("n_kv_heads") or attention["n_heads"],
        "rms_norm_eps": _epsilon(block["layer_norm"]),
        "tie_word_embeddings": bool(model.get("tie_word_embeddings")),
        **({"head_dim": own_width} if own_width else {}),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **_positions(model, windows),
    }


def _kind(block: Entries, attention: Entries, windows: Windows) -> str | None:
    match block.get("name", "default"), bool(attention.get("qk_norm")), any(windows):
        case "reordered_norm", True, is_sliding:
            return "olmo3" if is_sliding else "olmo2"
        case "default", False, False:
            return "llama"
    return None


def _epsilon(norm: Entries) -> object:
    return norm.get("eps") or 1e-5


def _attention(block: Entries) -> Entries:
    """Return the part on attention, which was called so before version 2.5."""
    found: Entries = block.get("sequence_mixer") or block["attention"]
    return found


def _blocks(model: Entries) -> list[Entries]:
    overrides: dict[str, Entries] = model.get("block_overrides") or {}
    usual: Entries = model["block"]
    return [overrides.get(str(number), usual) for number in range(model["n_layers"])]


def _strange(model: Entries) -> Iterator[str]:
    """Yield everything that the Hugging Face models cannot do."""
    if model.get("block_pattern"):
        yield "blocks of several kinds (block_pattern)"
    elif not 0 < model["n_layers"] <= _MOST_BLOCKS:
        yield f"n_layers={model['n_layers']}"
    else:
        yield from _unknown(model)
        yield from _uneven(model)
        block, attention = model["block"], _attention(model["block"])
        if _kind(block, attention, _windows(attention, model["n_layers"])) is None:
            yield "these norms in these blocks"


def _unknown(model: Entries) -> Iterator[str]:
    """Yield each entry that has no counterpart."""
    block, head, absent = model["block"], model["lm_head"], {"name": "absent"}
    attention = _attention(block)
    norms = {"layer_norm.": block.get("layer_norm"), "lm_head.layer_norm.": head.get("layer_norm")}
    norms |= {"qk_norm.": attention["qk_norm"]} if attention.get("qk_norm") else {}
    parts: dict[str, tuple[Entries, Known]] = {
        "": (model, _MODEL),
        "block.": (block, _BLOCK),
        "attention.": (_biased(attention), _ATTENTION),
        "rope.": (attention.get("rope") or absent, _ROPE),
        "feed_forward.": (_biased(block.get("feed_forward") or absent), _FEED_FORWARD),
        "lm_head.": (_biased(head), _HEAD),
        **{where: (_biased(norm or absent), _NORM) for where, norm in norms.items()},
    }
    for where, (entries, known) in parts.items():
        yield from unlike(entries, {**known, **_ASIDE}, where)
    if len({_epsilon(norm or {}) for norm in norms.values()}) > 1:
        yield "different values of layer_norm.eps"


def _biased(entries: Entries) -> Entries:
    """Return a part of the config, where a bias that is not said is one."""
    return entries | {"bias": entries.get("bias") is not False}


def _uneven(model: Entries) -> Iterator[str]:
    """Yield what differs between blocks, except how those with and without a window scale."""
    blocks = _blocks(model)
    windows = _windows(_attention(model["block"]), len(blocks))
    for number, block in enumerate(blocks):
        if _without_scaling(block) != _without_scaling(model["block"]):
            yield f"block_overrides[{number}]"
    if len(widths := {width for width in windows if width}) > 1:
        yield f"windows of {len(widths)} widths"
    ropes = {(bool(w), str(_rope(b))) for w, b in zip(windows, blocks, strict=True)}
    if len(ropes) > len({is_sliding for is_sliding, _ in ropes}) or "None" in dict(ropes).values():
        yield "this rope.scaling"


def _without_scaling(block: Entries) -> object:
    attention = _attention(block)
    rope = {name: v for name, v in (attention.get("rope") or {}).items() if name != "scaling"}
    return block | {"attention": None, "sequence_mixer": attention | {"rope": rope}}


def _windows(attention: Entries, num_blocks: int) -> Windows:
    if not (window := attention.get("sliding_window")):
        return [None] * num_blocks
    first = bool(window.get("force_full_attention_on_first_layer", True))
    last = bool(window.get("force_full_attention_on_last_layer", True))
    pattern = window["pattern"]
    widths = [pattern[(number - first) % len(pattern)] for number in range(num_blocks)]
    full = [0] * first + [num_blocks - 1] * last
    return [None if n in full or width == -1 else width for n, width in enumerate(widths)]


def _positions(model: Entries, windows: Windows) -> Entries:
    """Return how positions are encoded, in blocks with a window and in the others."""
    kinds = ["sliding_attention" if width else "full_attention" for width in windows]
    ropes = {kind: _rope(block) for kind, block in zip(kinds, _blocks(model), strict=True)}
    if not any(windows):
        return {"rope_parameters": ropes["full_attention"]}
    (width,) = {width for width in windows if width}
    return {"rope_parameters": ropes, "layer_types": kinds, "sliding_window": width}


def _rope(block: Entries) -> Entries | None:
    """Return how a block encodes positions, in transformers' words; None if it lacks them."""
    rope = _attention(block).get("rope") or {}
    scaling: Entries = rope.get("scaling") or {}
    factor, length = scaling.get("factor", 1), scaling.get("old_context_len")
    plain = {"rope_type": "default", "rope_theta": rope.get("theta", 500_000)}
    if scaling.get("attention_rescale_factor", 1.0) != 1.0:
        return None
    match scaling.get("_CLASS_", "").rpartition(".")[2]:
        case "" if not scaling:
            return plain
        case "ABFRoPEScalingConfig":
            return plain | {"rope_theta": scaling["new_theta"]}
        case "PIRoPEScalingConfig":
            return plain | {"rope_type": "linear", "factor": factor}
        case "StepwiseRoPEScalingConfig":
            return plain | {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": length,
                "low_freq_factor": 1 / (1 - scaling["low_freq_proportion"]),
                "high_freq_factor": 1 / scaling["high_freq_proportion"],
            }
        case "YaRNRoPEScalingConfig":
            return plain | {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": length,
                "beta_fast": scaling["beta_fast"],
                "beta_slow": scaling["beta_slow"],
                "attention_factor": 0.1 * math.log(factor) + 1,
            }
    return None
