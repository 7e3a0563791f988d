import asyncio
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from drift.api import rollout
from drift.dataset.store import stream_trajectories
from drift.errors import ConfigError, PolicyError
from drift.policies import DEFAULT_MODEL, make_policy, settings_for
from drift.policies.base import Policy, Sampling, next_reply
from drift.policies.hf import HFPolicy, check_known_ids, load_model
from drift.policies.scripted import ScriptedPolicy
from drift.types import Completion, Message

PROMPTS = [(5, 40, 50 + i, *range(60, 60 + i % 7)) for i in range(40)]


def ask(policy: Policy, prompts: list[tuple[int, ...]], sampling: Sampling, seeds: list[int]) -> list[Completion]:
    async def all_at_once() -> list[Completion]:
        return await asyncio.gather(
            *(policy.complete(p, sampling=sampling, seed=s) for p, s in zip(prompts, seeds, strict=True))
        )

    return asyncio.run(all_at_once())


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> HFPolicy:
    return HFPolicy(str(tiny_model), batch_size=16)


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=12), Sampling(max_new_tokens=12, temperature=0)])
def test_batch_size_and_order_change_no_reply(tiny_model: Path, sampling: Sampling) -> None:
    prompts = PROMPTS[:20]
    seeds = list(range(len(prompts)))
    reference = ask(HFPolicy(str(tiny_model), batch_size=1), prompts, sampling, seeds)
    for size in (8, 64):
        replies = ask(HFPolicy(str(tiny_model), batch_size=size), prompts, sampling, seeds)
        assert [r.token_ids for r in replies] == [r.token_ids for r in reference]
    backwards = ask(HFPolicy(str(tiny_model), batch_size=8), prompts[::-1], sampling, seeds[::-1])
    assert [r.token_ids for r in backwards[::-1]] == [r.token_ids for r in reference]


def test_weights_stored_by_columns_are_the_same_weights(tiny_model: Path, policy: HFPolicy) -> None:
    plain, _ = load_model(str(tiny_model))
    ids = torch.tensor([[5, 40, 50, *range(60, 66)], [5, 40, 51, *range(61, 67)]])
    mine = dict(policy._model.named_parameters())
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, mine[name]), name
        assert mine[name].is_contiguous() is not ("_proj" in name and weight.dim() == 2), name
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, policy._model(ids).logits, atol=1e-4)


def test_a_prompts_replies_follow_the_models_distribution(policy: HFPolicy, tiny_model: Path) -> None:
    model, _ = load_model(str(tiny_model))
    prompt, draws = PROMPTS[3], 3000
    with torch.inference_mode():
        exact = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double(), dim=-1)
    replies = ask(policy, [prompt] * draws, Sampling(max_new_tokens=1), list(range(draws)))
    counts = Counter(reply.token_ids[0] for reply in replies)
    likely = [token for token in range(len(exact)) if exact[token] * draws >= 10]
    chi_square = sum((counts[t] - draws * exact[t].item()) ** 2 / (draws * exact[t].item()) for t in likely)
    # A chi-square variable of n degrees has mean n and variance 2n; 5 standard deviations above is out of reach.
    assert chi_square < len(likely) + 5 * (2 * len(likely)) ** 0.5
    assert len(likely) > 5


def test_logprobs_are_the_models_own_at_temperature_one(policy: HFPolicy, tiny_model: Path) -> None:
    model, _ = load_model(str(tiny_model))
    sampling = Sampling(max_new_tokens=6, temperature=0.5, top_p=0.8)
    for prompt, reply in zip(PROMPTS[:8], ask(policy, PROMPTS[:8], sampling, list(range(8))), strict=True):
        ids = torch.tensor([[*prompt, *reply.token_ids]])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
        expected = [logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(reply.token_ids)]
        assert reply.logprobs == pytest.approx(expected, abs=1e-4)


def test_greedy_is_what_generate_gives_one_prompt_at_a_time(policy: HFPolicy, tiny_model: Path) -> None:
    model, _ = load_model(str(tiny_model))
    replies = ask(policy, PROMPTS[:6], Sampling(max_new_tokens=5, temperature=0), [0] * 6)
    for prompt, reply in zip(PROMPTS[:6], replies, strict=True):
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)[0, len(prompt) :].tolist()
        assert list(reply.token_ids) == alone[: len(reply.token_ids)]


def test_a_reply_ends_with_the_end_of_turn_token_or_with_its_length(policy: HFPolicy, tiny_model: Path) -> None:
    _, tokenizer = load_model(str(tiny_model))
    seen = set()
    for reply in ask(policy, PROMPTS * 2, Sampling(max_new_tokens=40), list(range(len(PROMPTS) * 2))):
        ends = [i for i, token in enumerate(reply.token_ids) if token == tokenizer.eos_token_id]
        seen.add(reply.finish_reason)
        if reply.finish_reason == "stop":
            assert ends == [len(reply.token_ids) - 1]
        else:
            assert not ends and len(reply.token_ids) == 40
        assert "<|end|>" not in reply.text
        assert reply.logprobs is not None and len(reply.logprobs) == len(reply.token_ids)
    assert seen == {"stop", "length"}


def test_stop_strings_end_a_reply_and_stay_in_it(policy: HFPolicy) -> None:
    free = ask(policy, PROMPTS, Sampling(max_new_tokens=20), list(range(len(PROMPTS))))
    letter = Counter(c for reply in free for c in reply.text if c.isascii() and c.isalnum()).most_common(1)[0][0]
    cut = ask(policy, PROMPTS, Sampling(max_new_tokens=20, stop=(letter,)), list(range(len(PROMPTS))))
    shortened = 0
    for whole, reply in zip(free, cut, strict=True):
        assert reply.token_ids == whole.token_ids[: len(reply.token_ids)]
        if letter in whole.text:
            assert letter in reply.text and reply.finish_reason == "stop"
            shortened += len(reply.token_ids) < len(whole.token_ids)
        else:
            assert reply.token_ids == whole.token_ids
    assert shortened > 0


def test_the_models_own_generation_settings_do_not_bend_sampling(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    bent = tmp_path / "bent"
    shutil.copytree(tiny_model, bent)
    GenerationConfig(top_k=1, temperature=0.01, do_sample=True, repetition_penalty=5.0, eos_token_id=1).save_pretrained(
        bent
    )
    sampling, seeds = Sampling(max_new_tokens=8), list(range(10))
    plain = ask(HFPolicy(str(tiny_model)), PROMPTS[:10], sampling, seeds)
    assert [r.token_ids for r in ask(HFPolicy(str(bent)), PROMPTS[:10], sampling, seeds)] == [
        r.token_ids for r in plain
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_stop_and_name_model_and_prompt(
    tiny_model: Path, temperature: float, value: float
) -> None:
    model, tokenizer = load_model(str(tiny_model))
    prompt = tuple(tokenizer("what is it")["input_ids"])
    with torch.no_grad():
        # The logit of one token alone, after every prompt without that token.
        model.model.embed_tokens.weight[200] = value
    broken = HFPolicy.of(model, tokenizer, source="my/model")
    with pytest.raises(PolicyError, match=r"model 'my/model' computes NaN or infinite logits .*'what is it'"):
        ask(broken, [prompt], Sampling(max_new_tokens=4, temperature=temperature), [0])


def test_ids_that_tokenizer_or_model_lack_are_refused(tiny_model: Path) -> None:
    model, tokenizer = load_model(str(tiny_model))
    policy = HFPolicy.of(model, tokenizer, source="my/model")
    with pytest.raises(PolicyError, match=r"has the id 999, and the model 'my/model' has 304 ids"):
        ask(policy, [(5, 999)], Sampling(max_new_tokens=4), [0])
    check_known_ids(tokenizer, 302, (40,), (50, 303, 60, 70), source="my/model")
    check_known_ids(tokenizer, 302, (40,), (303,), source="my/model")
    with pytest.raises(PolicyError, match=r"2 of 3 ids that the model 'my/model' replied .* are beyond its tokenizer"):
        check_known_ids(tokenizer, 302, (40,), (303, 302, 60), source="my/model")
    policy._known_ids = 3
    with pytest.raises(PolicyError, match="beyond its tokenizer, such as"):
        ask(policy, PROMPTS[:8], Sampling(max_new_tokens=8), list(range(8)))


def test_a_log_probability_that_is_not_finite_stops_whatever_policy_gave_it() -> None:
    class Broken(ScriptedPolicy):
        async def complete(self, prompt_ids: tuple[int, ...], *, sampling: Sampling, seed: int) -> Completion:
            return Completion(text="a", token_ids=(97,), logprobs=(float("nan"),), finish_reason="stop")

    asked = next_reply(Broken(["a"]), [{"role": "user", "content": "how many?"}], None, sampling=Sampling(), seed=0)
    with pytest.raises(PolicyError, match=r"policy scripted-\w+ replied to 'how many\?' with a log-probability of nan"):
        asyncio.run(asked)


def test_a_plain_models_settings_are_known_or_refused(tiny_model: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    shutil.copytree(tiny_model, told)
    template = told / "chat_template.jinja"
    template.write_text("{{ 'yes ' if thinking else 'no ' }}" + template.read_text())
    messages: list[Message] = [{"role": "user", "content": "2 + 2"}]
    plain, thinking = (
        make_policy(str(told), {"chat_template_kwargs": arguments}) for arguments in ({}, {"thinking": True})
    )
    assert isinstance(plain, HFPolicy) and isinstance(thinking, HFPolicy)
    assert plain.chat.first(messages) != thinking.chat.first(messages)
    assert thinking.fingerprint.startswith(plain.fingerprint + "+template-")
    for key in ("thinkng", "tokenize"):
        with pytest.raises(ConfigError, match=f"chat_template_kwargs: got '{key}', expected arguments that the chat"):
            make_policy(str(told), {"chat_template_kwargs": {key: True}})
    with pytest.raises(ConfigError, match="unknown setting 'chat_template'"):
        make_policy(str(told), {"chat_template": {}})
    # What is looked at before a run is what the policy takes: 0 is as many as fit.
    HFPolicy.check(str(told), batch_size=0)
    with pytest.raises(ConfigError, match="batch_size: got -1, expected a whole number ≥ 0"):
        HFPolicy.check(str(told), batch_size=-1)


def test_a_system_message_and_a_prefill_are_in_the_prompts_and_in_the_record(tiny_model: Path, tmp_path: Path) -> None:
    given = {"system": "Add up.", "prefill": "<answer>"}
    sampling = Sampling(max_new_tokens=4)
    data = rollout("arithmetic", model=tiny_model, policy=given, tasks=1, samples=2, sampling=sampling, out=tmp_path)
    spec = data.manifest["spec"]
    assert spec["prompts"] == given and "+template-" in spec["policy"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for turn in (turn for trajectory in stream_trajectories(data) for turn in trajectory.turns):
        prompt, sampled = tokenizer.decode(turn.prompt_ids), tokenizer.decode(turn.completion.token_ids)
        assert "Add up." in prompt and prompt.endswith("<answer>")
        assert turn.completion.text.startswith("<answer>") and not sampled.startswith("<answer>")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "nothing there"),
        ("nowhere", "nothing there"),
        ("owner/no-such-model", "can't be fetched"),
    ],
)
def test_a_model_that_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        make_policy(model)


def test_a_folder_without_a_model_and_broken_weights_are_told_apart(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"without config\.json"):
        HFPolicy(str(tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PolicyError, match="can't be loaded"):
        HFPolicy(str(broken))


def test_unknown_policies_and_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'scripted'"):
        make_policy("script:hello")
    with pytest.raises(ConfigError, match=r"policy\.dtype: got 'float8'"):
        make_policy(str(DEFAULT_MODEL), {"dtype": "float8"})


def test_each_of_several_models_takes_the_settings_that_its_kind_knows_and_its_own() -> None:
    models = {"base": "default", "chat": "openai-chat:served", "own": ScriptedPolicy(["a"])}
    settings = {"url": "http://x", "batch_size": 3, "retires": 1, "engine": "hf", "chat": {"url": "http://y"}}
    taken = [settings_for(name, settings, models) for name in models]
    # What none of them knows is refused when the first of them is made.
    plain = {"batch_size": 3, "retires": 1, "engine": "hf"}
    assert taken == [plain, {"url": "http://y", "retires": 1}, {"retires": 1}]
    # Of a server's models only the first has the name that is told for all.
    served = {"engine": "openai", "model": "served", "url": "http://x", "tuned": {"adapter": "./a", "retries": 2}}
    both = {"base": "default", "tuned": "default"}
    assert settings_for("base", served, both) == {"engine": "openai", "model": "served", "url": "http://x"}
    shared = {"engine": "openai", "url": "http://x"}
    assert settings_for("tuned", served, both) == {**shared, "adapter": "./a", "retries": 2}
    elsewhere = {**served, "tuned": {"engine": "hf", "batch_size": 2}}
    assert settings_for("tuned", elsewhere, both) == {"engine": "hf", "batch_size": 2}


def test_scripted_replies_depend_on_the_seed_alone() -> None:
    policy = ScriptedPolicy(["a", "b", "c"])
    prompts = [policy.chat.first([{"role": "user", "content": str(i)}]) for i in range(30)]
    seeds = list(range(30))
    first = ask(policy, prompts, Sampling(max_new_tokens=5), seeds)
    again = ask(policy, prompts[::-1], Sampling(max_new_tokens=5), seeds[::-1])[::-1]
    assert [r.text for r in first] == [r.text for r in again]
    assert {r.text for r in first} == {"a", "b", "c"}
    assert {r.text for r in ask(policy, prompts, Sampling(temperature=0), seeds)} == {"a"}
    long = ask(ScriptedPolicy(["héllo"]), prompts[:1], Sampling(max_new_tokens=2), [0])[0]
    # Two bytes would cut é in half; half a letter is not text.
    assert (long.text, long.finish_reason) == ("h", "length")
