"""What may be computed on trees of shared prefixes, what may not, and that neither changes a gradient."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from transformers.models.granitemoe_swa.configuration_granitemoe_swa import GraniteMoeSWAConfig
from transformers.models.granitemoe_swa.modeling_granitemoe_swa import GraniteMoeSWAForCausalLM

from drift.api import train
from drift.training import optimize
from drift.training.attention import Layout, tree_attention
from drift.training.config import TrainingConfig
from drift.training.divergence import sampled_logprobs
from drift.training.forward import (
    acting_window,
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

VOCABULARY = 211
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
HEADS = {**BASE, "head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 60}


def longrope(border: int = 128) -> Any:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": border,
    }
    more = {"original_max_position_embeddings": border, "sliding_window": None, "rope_parameters": rope}
    return tf.Phi3ForCausalLM(tf.Phi3Config(**BASE, **more))


def gemma3_with_images(**text: Any) -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7, "mm_tokens_per_image": 4}
    config = tf.Gemma3Config(
        text_config={**HEADS, **text}, vision_config={**vision, "image_size": 28, "patch_size": 14}, **tokens
    )
    return tf.AutoModelForCausalLM.from_config(config)


def falcon() -> Any:
    sizes = {name: BASE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    return tf.FalconForCausalLM(
        tf.FalconConfig(**sizes, multi_query=True, parallel_attn=True, bias=False, alibi=False, initializer_range=0.02)
    )


def qwen3_moe() -> Any:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**HEADS, **experts))


ACCEPTED: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**BASE)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**HEADS)),
    "qwen3_moe": qwen3_moe,
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**BASE)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**HEADS)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**HEADS, **WINDOW, attn_implementation="eager")),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**HEADS, **WINDOW)),
    "gemma3 with images": lambda: gemma3_with_images(**WINDOW),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**BASE, **WINDOW)),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**BASE, **EXPERTS, **WINDOW)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**BASE, **WINDOW)),
    "phi3 longrope": longrope,
    "phimoe without a window": lambda: tf.PhimoeForCausalLM(tf.PhimoeConfig(**BASE, **EXPERTS, sliding_window=None)),
    "olmo": lambda: tf.OlmoForCausalLM(tf.OlmoConfig(**BASE)),
    "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**BASE)),
    "olmo3": lambda: tf.Olmo3ForCausalLM(tf.Olmo3Config(**BASE, **WINDOW)),
    "glm": lambda: tf.GlmForCausalLM(tf.GlmConfig(**HEADS)),
    "smollm3": lambda: tf.SmolLM3ForCausalLM(tf.SmolLM3Config(**BASE)),
    "granite": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**BASE)),
    "granite with scaled logits": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**BASE, logits_scaling=3.0)),
    "cohere2": lambda: tf.Cohere2ForCausalLM(tf.Cohere2Config(**HEADS, **WINDOW, logit_scale=0.5)),
    "granitemoe with sinks": lambda: GraniteMoeSWAForCausalLM(GraniteMoeSWAConfig(**BASE, **EXPERTS, **WINDOW)),
    "gpt_oss with sinks": lambda: tf.GptOssForCausalLM(
        tf.GptOssConfig(**{**BASE, "intermediate_size": 32}, **EXPERTS, head_dim=16, **WINDOW)
    ),
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "phimoe with a window": (
        lambda: tf.PhimoeForCausalLM(tf.PhimoeConfig(**BASE, **EXPERTS, **WINDOW)),
        "its losses differ there",
    ),
    "doge": (
        lambda: tf.DogeForCausalLM(tf.DogeConfig(**BASE, attn_implementation="eager")),
        "its attention takes attention_mask",
    ),
    "recurrent_gemma": (
        lambda: tf.RecurrentGemmaForCausalLM(
            tf.RecurrentGemmaConfig(
                **{name: value for name, value in BASE.items() if name != "initializer_range"},
                lru_width=32,
                attention_window_size=60,
                block_types=("recurrent", "recurrent", "attention"),
            )
        ),
        "its 4 layers called the attention 1 times",
    ),
    "lfm2": (
        lambda: tf.Lfm2ForCausalLM(tf.Lfm2Config(**BASE, layer_types=["conv", "conv", "full_attention", "conv"])),
        "its 4 layers called the attention 1 times",
    ),
    "falcon": (falcon, "its 4 layers called the attention 0 times"),
    "gemma3 with images and capped logits": (
        lambda: gemma3_with_images(sliding_window=512, final_logit_softcapping=30.0),
        "its losses differ there",
    ),
}


def example(name: str, group: str, ids: list[int], first: int, weight: float, last: int | None = None) -> Example:
    weights = tuple(weight if first <= place < (last or len(ids)) else 0.0 for place in range(len(ids)))
    return Example(
        trajectory_id=name,
        group_id=group,
        token_ids=tuple(ids),
        sampled=tuple(w != 0 for w in weights),
        weight=weights,
    )


def some(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCABULARY) for _ in range(count)]


def conversations() -> list[Example]:
    """Four of one prompt: 90 tokens shared by all, 120 by two; the longest has 175."""
    prompt, reply = some(90, 0), some(30, 1)
    plan = ((prompt + reply, 40, 1.0), (prompt + reply, 55, -0.7), (prompt + some(25, 2), 33, 3.0), (prompt, 60, 1.5))
    return [example(str(k), "g", ids + some(own, 9 + k), 20, weight) for k, (ids, own, weight) in enumerate(plan)]


def gradient(model: Any) -> torch.Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in trained])


def one_by_one(model: Any, rows: list[Example]) -> torch.Tensor:
    """The oracle: plain transformers, all logits, float64 from there on."""
    model.zero_grad()
    for row in rows:
        ids, weight = torch.tensor([row.token_ids]), torch.tensor(row.weight, dtype=torch.float64)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
        loss_T = -logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        (loss_T * weight[1:]).sum().backward()
    return gradient(model)


def trained_gradient(model: Any, rows: list[Example], trees: bool, tokens: int = 8192) -> torch.Tensor:
    """As training computes it."""
    model.zero_grad()
    use_trees(model, trees)
    border = rope_border(model.config)
    passes: list[Any] = [tree_batch(tree) for tree in pack(rows, tokens, border)] if trees else []
    if not trees:
        passes = [padded_batch([rows[at] for at in alike]) for alike in pack_padded(rows, tokens, border)]
    for each in passes:
        model(batch=each).backward()
    use_trees(model, False)
    return gradient(model)


def everything_of(model: Any) -> list[torch.Tensor]:
    """All that a model holds, copied."""
    return [tensor.clone() for tensor in (*model.parameters(), *model.buffers())]


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def made(build: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    model = build().float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sink" in name:
                parameter.normal_(1.0, 1.0)
    return model


@pytest.mark.parametrize("family", ACCEPTED)
def test_families_whose_prefixes_are_shared_have_the_gradients_of_separate_rows(family: str) -> None:
    model = made(ACCEPTED[family])
    wanted = one_by_one(model, conversations())
    use_weighted_loss(model)
    assert why_not_trees(model) == ""
    assert off(trained_gradient(model, conversations(), True), wanted) < 1e-5


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_are_refused_are_trained_on_padded_rows_exactly(family: str) -> None:
    build, reason = REFUSED[family]
    model = made(build)
    wanted = one_by_one(model, conversations())
    use_weighted_loss(model)
    assert reason in why_not_trees(model, 180) and why_not_padded(model, 180) == ""
    assert off(trained_gradient(model, conversations(), False), wanted) < 1e-5


def test_a_model_that_sees_padding_is_trained_a_row_at_a_time() -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48}
    config = tf.CpmAntConfig(**sizes, num_hidden_layers=2, init_std=0.1, prompt_length=4)
    model = made(lambda: tf.CpmAntForCausalLM(config))
    wanted = one_by_one(model, conversations())
    use_weighted_loss(model)
    assert why_not_trees(model) and why_not_padded(model).startswith("its losses differ there")
    assert off(trained_gradient(model, conversations(), False), wanted) > 1e-2
    assert off(trained_gradient(model, conversations(), False, tokens=1), wanted) < 1e-5


def test_a_window_longer_than_every_row_is_no_reason_to_refuse() -> None:
    build, _ = REFUSED["phimoe with a window"]
    model = made(build)
    use_weighted_loss(model)
    assert acting_window(model.config, 60) == 0 and acting_window(model.config, 61) == 60
    assert why_not_trees(model, longest=60) == ""


def test_a_gradient_alone_that_differs_is_enough() -> None:
    model = made(ACCEPTED["qwen3"])
    use_weighted_loss(model)
    norm = model.model.layers[2].input_layernorm
    plain = norm.forward
    # The same numbers forward, and none of their gradient: what a loss can't show.
    norm.forward = lambda hidden: (
        plain(hidden).detach() if model.config._attn_implementation == "drift_tree" else plain(hidden)
    )
    assert why_not_trees(model).startswith("its gradients differ there")


# What is added in float32, in float64, and in float32 to separate rows as well.
@pytest.mark.parametrize(("off", "exact", "noise", "shares"), [(3, 0, 9, True), (3, 3, 9, False), (3, 0, 0, False)])
def test_rounding_is_a_difference_that_float64_has_not_and_separate_rows_have(
    off: float, exact: float, noise: float, shares: bool
) -> None:
    model = made(ACCEPTED["qwen3"])
    use_weighted_loss(model)
    norm, before = model.model.layers[2].input_layernorm, everything_of(model)
    plain = norm.forward

    def off_by_little(hidden: torch.Tensor) -> torch.Tensor:
        single = hidden.dtype == torch.float32
        wrong = (off if single else exact) * (model.config._attn_implementation == "drift_tree") + noise * single
        out: torch.Tensor = plain(hidden) * (1 + wrong * 1e-5 * torch.arange(32) / 32)
        return out

    norm.forward = off_by_little
    assert bool(why_not_trees(model)) != shares
    assert all(torch.equal(one, other) for one, other in zip(before, everything_of(model), strict=True))


def test_running_out_of_memory_says_nothing_of_the_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = tf.AutoModelForCausalLM.from_pretrained(tiny_model, trust_remote_code=False)
    use_weighted_loss(model)
    assert why_not_trees(model) == ""
    monkeypatch.setattr("drift.training.forward._difference", full)
    with pytest.raises(torch.OutOfMemoryError):
        why_not_trees(model)


def test_arguments_that_the_attention_does_not_know_are_refused_unless_they_are_none() -> None:
    part = torch.randn(1, 1, 4, 8)
    layout = Layout([4], [()])

    def call(mask: torch.Tensor | None = None, **more: Any) -> None:
        tree_attention(torch.nn.Module(), part, part, part, mask, tree=layout, **more)

    call(position_ids=torch.arange(4), position_bias=None, use_cache=False)
    with pytest.raises(ValueError, match="takes position_bias"):
        call(position_bias=torch.zeros(4, 4))
    with pytest.raises(ValueError, match="takes attention_mask"):
        call(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="takes is_causal=False"):
        call(is_causal=False)


@pytest.mark.parametrize("trees", [True, False])
def test_rows_on_either_side_of_a_rope_border_share_no_pass(trees: bool) -> None:
    prompt = some(90, 0)
    # Four of one prompt; the third is one token too long, and trained only far below the border.
    rows = [
        example("short", "g", prompt + some(10, 1), 20, 1.0),
        example("at the border", "g", prompt + some(38, 2), 20, 1.0),
        example("just beyond", "g", prompt + some(39, 3), 20, 1.0, last=100),
        example("long", "g", prompt + some(110, 4), 20, 1.0),
    ]
    model = made(longrope)
    assert rope_border(model.config) == 128
    wanted = one_by_one(model, rows)
    use_weighted_loss(model)
    for tokens in (1, 300, 8192):
        assert off(trained_gradient(model, rows, trees, tokens), wanted) < 1e-5
    together, alone = sampled_logprobs(model, rows), [sampled_logprobs(model, [row])[0] for row in rows]
    for ours, theirs in zip(together, alone, strict=True):
        assert abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("border", [32, 33, 40, 51, 52])
def test_the_rows_that_are_tried_lie_on_one_side_of_the_border(border: int) -> None:
    model = made(lambda: longrope(border))
    use_weighted_loss(model)
    assert why_not_trees(model) == ""


def test_the_answer_is_kept_beside_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(ACCEPTED["mistral"])
    use_weighted_loss(model)
    asked = []
    monkeypatch.setattr(optimize, "why_not_trees", lambda model, longest: asked.append(longest) or "some reason")
    path = tmp_path / optimize.PREFIXES
    # The window of 60 acts on rows of 61 tokens and more.
    answers = [optimize._why_not_trees(model, longest, path) for longest in (50, 60, 61, 400, 512)]
    assert answers == ["some reason"] * 5 and asked == [50, 61]
    model.config.rms_norm_eps = 0.1
    optimize._why_not_trees(model, 512, path)
    assert asked == [50, 61, 512]
    monkeypatch.setattr(optimize, "why_not_trees", lambda model, longest: "off by nan")
    model.config.rms_norm_eps = 0.2
    optimize._why_not_trees(model, 512, path)
    assert json.loads(path.read_text())["refused"] == "some reason"


SETTINGS: dict[str, Any] = {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-2, "save_steps": 0}


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"]])
def test_an_adapter_on_one_of_a_tied_pair_is_saved_as_it_was_trained(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, targets: list[str]
) -> None:
    from peft import PeftModel

    config = TrainingConfig(**SETTINGS, lora={"r": 4, "target_modules": targets})
    out = train(*weighed, out=tmp_path / "out", model=str(tiny_model), config=config)
    base = tf.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert base.config.tie_word_embeddings
    ids = torch.tensor([list(range(3, 60))])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        trained = PeftModel.from_pretrained(base, out / "adapter").eval()(input_ids=ids).logits
        saved = tf.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()(input_ids=ids).logits
    assert (trained - before).abs().max() > 1e-3
    assert torch.allclose(saved, trained, atol=1e-5)


@pytest.mark.parametrize("lora", [{}, {"r": 2}])
def test_the_saved_folder_is_what_was_loaded_but_for_the_weights(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, lora: dict[str, Any]
) -> None:
    tf.AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "plain")
    # As most tokenizers do, and drift's own do not.
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_model, padding_side="right")
    tokenizer.save_pretrained(tmp_path / "plain")
    config = TrainingConfig(**SETTINGS, lora=lora)
    out = train(*weighed, out=tmp_path / "out", model=str(tmp_path / "plain"), config=config)
    for path in sorted((tmp_path / "plain").iterdir()):
        if path.suffix in (".json", ".jinja") and "index" not in path.name:
            assert (out / path.name).read_text() == path.read_text(), path.name


def test_a_router_loss_that_the_config_asks_for_is_said_to_be_left_out(
    weighed: tuple[Path, Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_model)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "output_router_logits": True}
    sizes = {**HEADS, **experts, "vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = TrainingConfig(**{**SETTINGS, "max_steps": 1})
    train(*weighed, out=tmp_path / "out", model=str(tmp_path / "model"), config=config, any_policy=True)
    assert "router loss" in capsys.readouterr().err
