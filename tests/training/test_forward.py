import random
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from drift.training.forward import padded_batch, tree_batch, use_trees, use_weighted_loss, why_not_trees
from drift.training.loss import weighted_loss, weighted_nll
from drift.training.tree import build_tree
from drift.types import Example

VOCABULARY = 211
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 8}),
    # Both caps, and windows shorter than what the rows share.
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8, "sliding_window": 16}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"head_dim": 8, "sliding_window": 16}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 20}),
}


def make(family: str, dtype: torch.dtype) -> Any:
    config, model, more = FAMILIES[family]
    torch.manual_seed(0)
    return model(config(**{**SIZES, **more, "attn_implementation": "eager"})).to(dtype)


def make_rows(levels: int, scope: str, seed: int = 0) -> list[Example]:
    """Rows that share ``levels`` stretches: a prompt, a first reply, a second; one of them is there twice."""
    rng = random.Random(seed)

    def some(count: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(count)]

    shared = [some(24)]
    for _ in range(levels - 1):
        shared = [above + some(18) for above in shared for _ in range(2)]
    rows = []
    for number in range(8):
        above = shared[number % len(shared)]
        ids = above + some(rng.randint(3, 30)) if number != 5 else list(rows[1].token_ids)
        first = len(above) if scope == "terminal" else 10
        weight = (0.0,) * first + (rng.choice([1.0, -0.7, 3.0]),) * (len(ids) - first)
        rows.append(
            Example(
                trajectory_id=str(number),
                group_id="g",
                token_ids=tuple(ids),
                sampled=tuple(w != 0 for w in weight),
                weight=weight,
            )
        )
    return rows


def plain_gradients(model: Any, rows: list[Example]) -> tuple[float, torch.Tensor]:
    """One row at a time, all logits, transformers' own attention."""
    model.zero_grad()
    total = 0.0
    for row in rows:
        ids = torch.tensor([row.token_ids])
        weight = torch.tensor([row.weight], dtype=torch.float64)
        loss = weighted_loss(model(input_ids=ids, use_cache=False).logits, ids, weight, 1)
        loss.backward()
        total += loss.item()
    return total, torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()


def tree_gradients(model: Any, rows: list[Example]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    use_trees(model, True)
    loss = model(batch=tree_batch(build_tree(rows, segment_tokens=4)))
    loss.backward()
    use_trees(model, False)
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()


@pytest.mark.parametrize("scope", ["terminal", "all"])
@pytest.mark.parametrize(
    ("dtype", "levels"),
    [(torch.float32, levels) for levels in (1, 2, 3)]
    + [pytest.param(torch.float64, levels, marks=pytest.mark.slow) for levels in (1, 2, 3)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_has_the_gradients_of_its_rows(family: str, dtype: torch.dtype, levels: int, scope: str) -> None:
    model, rows = make(family, dtype), make_rows(levels, scope)
    assert any(w < 0 for row in rows for w in row.weight)
    expected_loss, expected = plain_gradients(model, rows)
    use_weighted_loss(model)
    loss, found = tree_gradients(model, rows)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def gradients_of_padded_rows(model: Any, rows: list[Example]) -> torch.Tensor:
    model.zero_grad()
    model(batch=padded_batch(rows).to(next(model.parameters()).device)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double().cpu()


@pytest.mark.parametrize(
    ("family", "attention"),
    # Gemma 2 has no sdpa in transformers, which leaves out the cap of its scores.
    [(family, name) for family in FAMILIES for name in ("eager", "sdpa") if (family, name) != ("gemma2", "sdpa")],
)
def test_padded_rows_have_the_same_gradients_under_each_attention(family: str, attention: str) -> None:
    model, rows = make(family, torch.float32), make_rows(2, "all")
    _, expected = plain_gradients(model, rows)
    use_weighted_loss(model)
    model.set_attn_implementation(attention)
    found = gradients_of_padded_rows(model, rows)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.gpu
def test_padded_rows_have_the_same_gradients_under_flex_attention() -> None:
    config, build, more = FAMILIES["qwen2"]
    torch.manual_seed(0)
    # Kernels take heads of at least 16 numbers.
    model = build(config(**{**SIZES, "hidden_size": 64, **more, "attn_implementation": "eager"}))
    rows = make_rows(2, "all")
    _, expected = plain_gradients(model, rows)
    use_weighted_loss(model)
    model.to("cuda").set_attn_implementation("flex_attention")
    found = gradients_of_padded_rows(model, rows)
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_models_that_a_tree_does_not_fit_are_told_by_name_of_what_is_missing() -> None:
    for family in FAMILIES:
        model = make(family, torch.float32)
        use_weighted_loss(model)
        assert why_not_trees(model) == "" and model.training
        assert model.config._attn_implementation == "eager"
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2))
    use_weighted_loss(mamba)
    assert why_not_trees(mamba) == "its attention can't be replaced through transformers' AttentionInterface"
    # Granite divides its logits by a constant after the head, and so does the head's loss.
    granite = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0))
    use_weighted_loss(granite)
    assert why_not_trees(granite) == ""
    # Whatever the model, the plain way is there.
    rows = make_rows(1, "terminal")
    separate = sum(granite(batch=padded_batch([row])).item() for row in rows)
    assert granite(batch=padded_batch(rows)).item() == pytest.approx(separate, rel=1e-5)


def test_recomputing_activations_and_lora_change_nothing() -> None:
    from peft import LoraConfig, get_peft_model

    rows = make_rows(2, "all")
    plain = make("qwen2", torch.float32)
    use_weighted_loss(plain)
    loss, expected = tree_gradients(plain, rows)
    plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    plain.train()
    again, found = tree_gradients(plain, rows)
    assert again == pytest.approx(loss, rel=1e-6) and torch.allclose(found, expected, rtol=1e-4, atol=1e-6)

    adapted = get_peft_model(make("qwen2", torch.float64), LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    gradients = []
    for run in (plain_gradients, tree_gradients):
        for parameter in adapted.parameters():
            parameter.requires_grad_(parameter.requires_grad)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        for parameter in adapted.parameters():
            parameter.grad = None
        wrapper = _Trained(adapted, trained)
        gradients.append(run(wrapper, rows))
        if run is plain_gradients:
            use_weighted_loss(adapted)
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-6)
    assert float((gradients[0][1] - gradients[1][1]).norm() / gradients[0][1].norm()) < 1e-5


class _Trained:
    """A model of which only some parameters are looked at."""

    def __init__(self, model: Any, trained: list[torch.nn.Parameter]) -> None:
        self._model, self._trained = model, trained

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def parameters(self) -> list[torch.nn.Parameter]:
        return self._trained


def test_mixed_precision_is_as_near_as_its_rounding() -> None:
    rows = make_rows(2, "terminal")
    model = make("qwen2", torch.float32)
    expected_loss, expected = plain_gradients(model, rows)
    use_weighted_loss(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, found = tree_gradients(model, rows)
    assert loss == pytest.approx(expected_loss, rel=2e-2)
    assert float((found - expected).norm() / expected.norm()) < 3e-2


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_the_blockwise_loss_is_the_plain_one(
    softcap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drift.training.loss.BLOCK", 7 * 13)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    hidden, head, offset = draw(20, 5), draw(13, 5), draw(13) if bias else None
    targets = torch.randint(0, 13, (20,), generator=generator)
    weights = torch.randn(20, generator=generator, dtype=torch.float64)
    logits = torch.nn.functional.linear(hidden, head, offset)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum() * 0.3
    inputs = [hidden, head] + ([offset] if offset is not None else [])
    wanted = torch.autograd.grad(expected, inputs)
    found = weighted_nll(hidden, head, targets, weights, bias_V=offset, softcap=softcap) * 0.3
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
