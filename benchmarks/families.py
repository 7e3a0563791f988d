"""Every causal LM of transformers, built small from its configuration: is what drift trains what separate rows are?

    python benchmarks/families.py [NAME …] --results runs/families.jsonl [--out docs/families.md]

Each family is built in several variants (windows and chunks shorter than the rows, capped and scaled logits, longrope
with rows on either side of its border), with norms, biases and sinks as training might leave them. Of each the losses
of the tokens and the gradient of all weights, computed the way drift chooses (trees of shared prefixes, or padded
rows), are compared in float32 with plain transformers, one row at a time. Exits with 1 if any is off by more than
1e-5, unless that is rounding: in float64 by no more than 1e-6, and no further than plain rows are from their own
float64. What is in the results already is not built again.
Models are made here and nothing is downloaded; all of them take some ten minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from drift.training.forward import (
    TreeBatch,
    padded_batch,
    rope_border,
    tree_batch,
    use_trees,
    use_weighted_loss,
    why_not_padded,
    why_not_trees,
)
from drift.training.plan import pack, pack_padded
from drift.types import Example

VOCABULARY, WINDOW, BORDER, TOKENS, SECONDS = 211, 60, 128, 8192, 300
LIMIT, EXACT = 1e-5, 1e-6
# What makes a model small, under all the names that configurations have for it.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "mamba_d_head", "mamba_head_dim", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "kv_channels"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_shared_experts"), 1),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "rotary_dim", "encoder_hash_byte_group_vocab"), 8),
    **dict.fromkeys(("mamba_d_ssm", "mamba_intermediate_size"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 512),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_n_groups", "n_groups"), 4),
    **dict.fromkeys(("initializer_range", "init_std"), 0.1),
    "num_kv_shared_layers": 0,
    "image_size": 28,
    "patch_size": 14,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "use_cache": False,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": BORDER,
}
# What a family wants beside that.
MORE: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "dots3_note": {"per_layer_config": {}},
    "dots3_note_text": {"per_layer_config": {}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "windows": {
        **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "local_attention_window"), WINDOW),
        **dict.fromkeys(("attention_chunk_size", "sliding_window_size", "local_window_size"), WINDOW),
        "use_sliding_window": True,
        "max_window_layers": 2,
    },
    "capped or scaled": {
        **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "attention_logit_cap"), 5.0),
        **dict.fromkeys(("logits_scaling", "logit_scale", "embedding_multiplier", "residual_multiplier"), 0.5),
        **dict.fromkeys(("lm_head_multiplier", "mup_width_multiplier", "output_multiplier_scale"), 0.5),
    },
    "longrope": {"rope_parameters": LONGROPE, "original_max_position_embeddings": BORDER},
}


@dataclass(frozen=True)
class Finding:
    """What became of one family in one variant.

    Attributes:
        refused: why it isn't trained on trees of shared prefixes; empty if it is.
        loss: the largest difference of a token's loss, as a share of the largest loss.
        gradient: the norm of the gradient's difference, as a share of its norm.
        exact: the same in float64, where it is more than ``LIMIT`` in float32.
        plain, ours: and then how far plain rows, and what drift computes, are from plain rows in float64.
        failed: why nothing could be measured; empty if it was.
        alone: padding changes its rows, so that they are trained one at a time.
    """

    family: str
    variant: str
    refused: str = ""
    loss: float = 0.0
    gradient: float = 0.0
    exact: float = 0.0
    plain: float = 0.0
    ours: float = 0.0
    failed: str = ""
    alone: bool = False

    @property
    def wrong(self) -> bool:
        """Whether what is trained is not what separate rows are."""
        off = max(self.loss, self.gradient)
        return not (off <= LIMIT or (0 < self.exact <= EXACT and off <= self.plain))


def rows() -> list[Example]:
    """Four conversations of one prompt and one of another: 90 tokens shared by all four, 120 by two; up to 200 tokens.

    Each token's weight is another one, by which its loss is found again; what rows share is trained in one of them.
    """
    drawn = random.Random(0)

    def some(count: int) -> list[int]:
        return [drawn.randrange(8, VOCABULARY - 8) for _ in range(count)]

    prompt, reply = some(90), some(30)
    plan = [(prompt + reply, 40, 1.0), (prompt + reply, 55, -0.7), (prompt + some(25), 33, 2.0), (prompt, 110, 1.5)]
    made = []
    for number, (before, own, sign) in enumerate([*plan, (some(10), 50, 0.5)]):
        ids = before + some(own)
        first = 20 if not number else len(before)
        weight = [0.0 if at < first else sign * (1 + (at + 200 * number) / 1000) for at in range(len(ids))]
        made.append(
            Example(
                trajectory_id=str(number),
                group_id="far" if number == len(plan) else "near",
                token_ids=tuple(ids),
                sampled=tuple(value != 0 for value in weight),
                weight=tuple(weight),
            )
        )
    return made


def fields_of(config: type) -> dict[str, Any]:
    """Names and annotations of what a configuration class takes, its bases' included."""
    return {
        name: kind for base in reversed(config.__mro__) for name, kind in vars(base).get("__annotations__", {}).items()
    }


def small(config: type, variant: dict[str, Any], head: int = 8) -> dict[str, Any]:
    """Arguments that make a configuration small, its parts' included, with as much of ``variant`` as it knows."""
    known, plain = fields_of(config), config()
    given = {name: value for name, value in {**SIZES, **variant}.items() if name in known}
    if "kv_lora_rank" in known:
        given["num_key_value_heads"] = SIZES["num_attention_heads"]
    if given.get("rope_parameters"):
        half = head // 2
        given["rope_parameters"] = {**LONGROPE, "short_factor": [1.0] * half, "long_factor": [4.0] * half}
    for name, part in (getattr(config, "sub_configs", None) or {}).items():
        part = type(getattr(plain, name, None)) if part.__name__ == "AutoConfig" else part
        if issubclass(part, transformers.PreTrainedConfig):
            given[name] = {"model_type": part.model_type, **small(part, variant)}
    return given


def knows(config: type, variant: dict[str, Any]) -> bool:
    """Whether a configuration has anything that a variant changes; what is as it is, all have."""
    if not variant:
        return True
    parts = [part for name, part in (getattr(config, "sub_configs", None) or {}).items() if "text" in name]
    rope = "rope_parameters" not in variant or "original_max_position_embeddings" in fields_of(config)
    return any(name in fields_of(each) for each in (config, *parts) for name in variant) and rope


def made(family: str, variant: dict[str, Any]) -> Any:
    """A small model in float32, with what begins at 0 or 1 as training might leave it."""
    config = transformers.CONFIG_MAPPING[family]
    torch.manual_seed(0)
    settings = config(**small(config, {**variant, **MORE.get(family, {})}))
    with torch.device("meta"):
        empty: Any = transformers.AutoModelForCausalLM.from_config(settings)
    if (count := sum(parameter.numel() for parameter in empty.parameters())) > 40_000_000:
        raise ValueError(f"{count / 1e6:.0f} million parameters: a size that SIZES doesn't name")
    model: Any = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.std() == 0 or not parameter.isfinite().all():
                parameter.nan_to_num_(0.0).add_(torch.randn_like(parameter), alpha=0.2)
    return model


def gradient(model: Any) -> torch.Tensor:
    """``(P,)`` of all parameters, in float64."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([part.flatten().double() for part in parts])


def one_by_one(model: Any, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle: the tokens' losses in the order of their weights, and the gradient, by plain transformers."""
    model.zero_grad()
    losses: dict[float, float] = {}
    for row in examples:
        ids, weight = torch.tensor([row.token_ids]), torch.tensor(row.weight, dtype=torch.float64)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
        loss_T = -logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        (loss_T * weight[1:]).sum().backward()
        losses |= {w: loss for w, loss in zip(row.weight[1:], loss_T.tolist(), strict=True) if w}
    return torch.tensor([losses[weight] for weight in sorted(losses)]).double(), gradient(model)


def as_drift_does(model: Any, examples: list[Example], trees: bool, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, the way it is trained."""
    model.zero_grad()
    use_trees(model, trees)
    border = rope_border(model.config)
    passes: list[Any] = [tree_batch(tree) for tree in pack(examples, tokens, border)] if trees else []
    if not trees:
        passes = [padded_batch([examples[at] for at in alike]) for alike in pack_padded(examples, tokens, border)]
    losses: dict[float, float] = {}
    for batch in passes:
        weights = batch.weights if isinstance(batch, TreeBatch) else batch.weight
        weights.requires_grad_()
        model(batch=batch).backward()
        pairs = zip(weights.detach().flatten().tolist(), weights.grad.flatten().tolist(), strict=True)
        losses |= {weight: loss for weight, loss in pairs if weight}
    use_trees(model, False)
    return torch.tensor([losses[weight] for weight in sorted(losses)]).double(), gradient(model)


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The norm of a difference as a share of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def measured(family: str, variant: str) -> Finding:
    """Build one family in one variant and compare."""
    try:
        signal.alarm(SECONDS)
        model, examples = made(family, VARIANTS[variant]), rows()
        losses, wanted = one_by_one(model, examples)
        if not bool(wanted.isfinite().all()):
            return Finding(family, variant, failed="its own gradient is not finite")
        use_weighted_loss(model)
        longest = max(len(row.token_ids) for row in examples)
        refused = why_not_trees(model, longest)
        alone = bool(refused and why_not_padded(model, longest))
        way = {"trees": not refused, "tokens": 1 if alone else TOKENS}
        model.eval()
        ours, found = as_drift_does(model, examples, **way)
        loss, off = float((ours - losses).abs().max() / losses.abs().max()), apart(found, wanted)
        exact: list[float] = []
        if not max(loss, off) <= LIMIT:
            truth = one_by_one(model.double(), examples)[1]
            exact = [apart(each, truth) for each in (as_drift_does(model, examples, **way)[1], wanted, found)]
        return Finding(family, variant, refused, loss, off, *exact, alone=alone)
    except Exception as error:
        return Finding(family, variant, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")
    finally:
        signal.alarm(0)


def sweep(names: list[str], known: list[Finding]) -> Iterator[Finding]:
    """Every family whose name is among ``names`` (all, where there are none) and not ``known``, in every variant."""
    done = {(each.family, each.variant) for each in known}
    for family in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        for variant, changes in VARIANTS.items():
            asked = not names or family in names
            if asked and (family, variant) not in done and knows(transformers.CONFIG_MAPPING[family], changes):
                yield measured(family, variant)


def told_of(findings: list[Finding]) -> str:
    """How many models of how many families, and how far off they are at most."""
    off = max((each.gradient for each in findings if not each.exact), default=0.0)
    families = len({each.family for each in findings})
    return f"{len(findings)} models of {families} families, gradients off by at most {off:.1e} of their norm"


def page(findings: list[Finding]) -> str:
    """The findings as a page of Markdown."""
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    built = [each for each in findings if not each.failed]
    shared, padded = ([each for each in built if bool(each.refused) == refused] for refused in (False, True))
    rounding = [each for each in built if each.exact]
    failed = [each for each in findings if each.failed and each.variant == next(iter(VARIANTS))]
    kinds: dict[str, dict[str, list[str]]] = {}
    for each in padded:
        reason = re.sub(r"[0-9]+ layers called.*", "layers don't all call the attention once", each.refused)
        reason = reason.partition(" (")[0]
        kinds.setdefault(reason, {}).setdefault(each.family, []).append(each.variant)
    everything = "{} of {} families of causal language models, built small in up to {} variants ({})".format(
        len({each.family for each in built}),
        len(names),
        len(VARIANTS),
        ", ".join(VARIANTS),
    )
    alone = sorted({each.family for each in built if each.alone})
    wrong = [f"{each.family} ({each.variant})" for each in built if each.wrong]
    lines = [
        "# Which models share prefixes",
        "",
        f"Made by `benchmarks/families.py` with transformers {transformers.__version__}: {everything}.",
        "Losses of tokens and gradients, against plain transformers, one row at a time:",
        "",
        f"- on trees of shared prefixes: {told_of(shared)};",
        f"- on padded rows, being refused: {told_of(padded)};",
        f"- off by more in float32, by at most {EXACT:.0e} in float64, as plain rows round more: "
        f"{', '.join(sorted({each.family for each in rounding if not each.wrong})) or 'none'} (below);",
        f"- of those refused one row at a time, as padding changes them: {', '.join(alone) or 'none'};",
        f"- wrong: {', '.join(wrong) or 'none'}.",
        "",
        "## On trees",
        "",
        ", ".join(sorted({each.family for each in shared})) + ".",
        "",
        "## On padded rows",
        "",
        "| why | families |",
        "|---|---|",
    ]
    for reason, families in sorted(kinds.items()):
        everywhere = {name for name in families if not any(each.family == name for each in shared)}
        told = [name if name in everywhere else f"{name} ({', '.join(families[name])})" for name in sorted(families)]
        lines.append(f"| {reason} | {', '.join(told)} |")
    lines += [
        "",
        "## Rounding",
        "",
        "Norm of the gradient's difference, as a share of its norm. Plain rows of these are further from their own",
        "float64 than from what drift computes.",
        "",
        "| model | ours from plain rows | the same in float64 | plain rows from float64 | ours from float64 |",
        "|---|---|---|---|---|",
        *(
            f"| {each.family} ({each.variant}) | "
            + " | ".join(f"{off:.1e}" for off in (each.gradient, each.exact, each.plain, each.ours))
            + " |"
            for each in rounding
        ),
    ]
    lines += ["", "## Not built", "", "| family | why |", "|---|---|"]
    lines += [f"| {each.family} | {each.failed.replace('|', ' ')} |" for each in failed]
    untried = ", ".join(sorted(names - {each.family for each in findings}))
    return "\n".join([*lines, "", f"Not tried: {untried or 'none'}."]) + "\n"


def main() -> int:
    """Build, compare, print, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity(60)

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.results.read_text().splitlines() if arguments.results.exists() else []
    findings = [Finding(**json.loads(line)) for line in lines]
    for each in sweep(arguments.names, findings):
        findings.append(each)
        with arguments.results.open("a") as file:
            file.write(json.dumps(asdict(each)) + "\n")
        way = "failed" if each.failed else "padded rows" if each.refused else "trees"
        wrong = "WRONG" if each.wrong else ""
        exact = (
            f"in float64 {each.exact:.1e}; from it plain {each.plain:.1e}, ours {each.ours:.1e} " if each.exact else ""
        )
        print(
            f"{each.family:24} {each.variant:18} {way:12} loss {each.loss:.1e} gradient {each.gradient:.1e} {wrong:6}"
            f"{exact}{each.failed or each.refused}",
            flush=True,
        )
    findings.sort(key=lambda each: (each.family, list(VARIANTS).index(each.variant)))
    if arguments.out:
        arguments.out.write_text(page(findings))
    return int(any(each.wrong for each in findings))


if __name__ == "__main__":
    sys.exit(main())
