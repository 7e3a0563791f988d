import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, MambaConfig, MistralConfig

from drift.errors import PolicyError
from drift.policies.base import Sampling
from drift.policies.hf import HFPolicy, load_model
from drift.policies.kept import Kept, KeptCaches, block_keys

SYSTEM = tuple(range(100, 140))
FEEDBACK = (7, 8, 9)
SAMPLING = Sampling(max_new_tokens=9)


async def converse(policy: HFPolicy, question: int, sample: int, turns: int = 3) -> tuple[int, ...]:
    ids = (*SYSTEM, *range(40, 45 + question), question)
    for turn in range(turns):
        said = await policy.complete(ids, sampling=SAMPLING, seed=100 * question + 10 * sample + turn)
        ids = (*ids, *said.token_ids, *FEEDBACK)
    return ids


def conversations(policy: HFPolicy, questions: int = 5, samples: int = 4) -> list[tuple[int, ...]]:
    async def all_of_them() -> list[tuple[int, ...]]:
        return await asyncio.gather(*(converse(policy, q, s) for q in range(questions) for s in range(samples)))

    return asyncio.run(all_of_them())


@contextmanager
def counted(policy: HFPolicy) -> Iterator[list[int]]:
    """Tokens of each forward pass, padding among them."""
    found: list[int] = []
    hook = policy._model.register_forward_pre_hook(
        lambda _, args, given: found.append(given["input_ids"].numel()), with_kwargs=True
    )
    yield found
    hook.remove()


def test_neither_batch_nor_caches_change_a_conversation_and_caches_save_most_of_it(tiny_model: Path) -> None:
    def sampled(batch_size: int, **without: Any) -> tuple[list[tuple[int, ...]], int]:
        policy = HFPolicy(str(tiny_model), batch_size=batch_size)
        vars(policy._decoder).update(without)
        with counted(policy) as tokens:
            return conversations(policy), sum(tokens)

    (whole, kept), (plain, computed) = sampled(64), sampled(64, _keeps=False)
    assert whole == plain == sampled(3)[0] == sampled(7)[0]
    # Without: 3 prompts of 50, 62 and 74 for 20 conversations, and 9 tokens after each.
    assert kept < 0.4 * computed
    small = HFPolicy(str(tiny_model), batch_size=8)
    conversations(small, questions=1, samples=1)
    small._decoder._kept.budget = 3 * small._decoder._kept.bytes
    assert conversations(small) == whole
    assert 0 < small._decoder._kept.bytes <= small._decoder._kept.budget
    asyncio.run(small.aclose())
    assert small._decoder._kept.bytes == 0


def test_a_prompt_of_many_samples_is_computed_once(tiny_model: Path) -> None:
    policy = HFPolicy(str(tiny_model))
    conversations(policy, questions=1, samples=1)
    prompt = tuple(range(60, 124))

    async def sampled() -> None:
        once = Sampling(max_new_tokens=1)
        await asyncio.gather(*(policy.complete(prompt, sampling=once, seed=seed) for seed in range(20)))

    with counted(policy) as tokens:
        asyncio.run(sampled())
    assert sum(tokens) == len(prompt) + 19


@pytest.mark.parametrize(
    ("config", "keeps"),
    [
        (LlamaConfig(num_key_value_heads=2), True),
        (GPT2Config(n_embd=32, n_layer=2, n_head=4), True),
        (BloomConfig(hidden_size=32, n_layer=2, n_head=4), None),
        (
            LlamaConfig(
                num_key_value_heads=2, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
            ),
            False,
        ),
        (MistralConfig(sliding_window=8, num_key_value_heads=2), False),
        (MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4), False),
    ],
)
def test_models_whose_cache_cannot_be_kept_are_sampled_all_the_same(
    tiny_model: Path, config: Any, keeps: bool | None
) -> None:
    config.vocab_size = 304
    for name, value in {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }.items():
        if name in config.to_dict() and config.model_type in ("llama", "mistral"):
            setattr(config, name, value)
    config.head_dim = 8
    torch.manual_seed(1)
    model, tokenizer = AutoModelForCausalLM.from_config(config).eval(), load_model(str(tiny_model))[1]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    policy = HFPolicy.of(model, tokenizer, source="mine")
    found = conversations(policy, questions=2, samples=2)
    assert keeps is None or policy._decoder._keeps is keeps
    one_by_one = HFPolicy.of(model, tokenizer, source="mine", batch_size=1)
    one_by_one._decoder._keeps = False
    assert found == conversations(one_by_one, questions=2, samples=2)


def test_new_weights_make_what_is_kept_useless(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model))
    policy = HFPolicy.of(model, tokenizer, source="mine")
    before = conversations(policy, questions=1)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-1)
    after = conversations(policy, questions=1)
    assert after != before and after == conversations(HFPolicy.of(model, tokenizer, source="mine"), questions=1)


def test_where_memory_runs_out_fewer_replies_are_computed_at_once(tiny_model: Path) -> None:
    policy = HFPolicy(str(tiny_model))
    whole, rows = conversations(policy, questions=2), 8

    def small_memory(_: Any, args: Any, given: dict[str, Any]) -> None:
        if len(given["input_ids"]) >= rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")

    tight = HFPolicy(str(tiny_model))
    tight._model.register_forward_pre_hook(small_memory, with_kwargs=True)
    assert conversations(tight, questions=2) == whole
    rows = 1
    with pytest.raises(PolicyError, match=r"no memory for one reply .* CUDA out of memory"):
        conversations(tight, questions=2)


def test_whoever_stops_waiting_stops_the_computing_within_a_forward_pass(tiny_model: Path) -> None:
    policy = HFPolicy(str(tiny_model))
    whole = conversations(policy, questions=1)
    entered, released, second = threading.Event(), threading.Event(), []

    def hold(*_: Any) -> None:
        entered.set()
        released.wait(60)

    async def given_up(close: bool) -> None:
        talk = asyncio.ensure_future(converse(policy, 0, 0))
        while not entered.is_set():
            await asyncio.sleep(0.01)
        # The first layer goes on when nobody waits any more.
        threading.Timer(0.5, released.set).start()
        talk.cancel()
        if close:
            await policy.aclose()
        await asyncio.wait([talk])

    layers = policy._model.model.layers
    hooks = [layers[0].mlp.register_forward_pre_hook(hold)]
    hooks += [layers[1].mlp.register_forward_pre_hook(lambda *_: second.append(1))]
    for close in (True, False):
        entered.clear()
        released.clear()
        asyncio.run(given_up(close))
        assert entered.is_set() and not second
    for hook in hooks:
        hook.remove()
    assert conversations(policy, questions=1) == whole


def test_kept_caches_are_found_to_the_id_and_go_when_they_were_not_used_for_longest() -> None:
    def kept(ids: list[int]) -> Kept:
        return Kept(ids, [(torch.zeros(1, len(ids), 1), torch.zeros(1, len(ids), 1))], shared=False)

    def longest(ids: list[int]) -> tuple[Kept | None, int]:
        return caches.longest(ids, block_keys(ids))

    caches, first, second = KeptCaches(budget=8 * 70), kept([*range(40)]), kept([*range(20), *range(90, 100)])
    for each in (first, second):
        caches.put(each)
    assert longest([*range(50)]) == (first, 40) and longest([*range(40)]) == (first, 39)
    assert longest([*range(35), 1, 2]) == (first, 35) and longest([*range(15)]) == (None, 0)
    assert longest([*range(20), *range(90, 99), 1])[1] in (20, 29)
    caches.use(first)
    caches.put(kept([5] * 20))
    assert longest([*range(50)]) == (first, 40) and longest([5] * 30)[1] == 20 and caches.bytes == 8 * 60
    caches.put(kept([6] * 200))
    assert caches.bytes == 8 * 60
