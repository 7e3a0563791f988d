"""Measuring without an environment: prompts held out of a log, and how likely models find the replies to them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import drift
from drift.dataset.outcomes import outcomes
from drift.dataset.store import read_trajectories
from drift.errors import ConfigError
from drift.policies import DEFAULT_MODEL
from drift.policies.hf import load_model
from drift.policies.scripted import ScriptedPolicy
from drift.weights.steps import is_held_out
from drift.weights.table import read_weights

SHARE = 0.4


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 24 sums by kinds of people, each rated 0 to 3, half of them near-duplicates of the other half."""
    folder = tmp_path_factory.mktemp("logged")
    rows = []
    for n in range(24):
        who = ["Ann", "Bob", "Carl", "Dora", "Eve", "Finn", "Gus", "Hal", "Ida", "Jo", "Kim", "Lee"][n % 12]
        asked = f"{who}: what is {n} + 25?" if n < 12 else f"{who.upper()}, WHAT is {n - 12} + 25"
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"<answer>{n + 25}</answer>"}]
        said += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}] if n % 3 else []
        rows.append(json.dumps({"messages": said, "reward": n % 4}))
    (folder / "log.jsonl").write_text("\n".join(rows))
    drift.read_logs(folder / "log.jsonl", out=folder / "data")
    drift.weigh(folder / "data", "swift", steps=[{"hold_out": SHARE}, {"skip_small": None}], out=folder / "weights")
    return folder


def test_prompts_are_held_out_with_their_near_duplicates(logged: Path) -> None:
    table = read_weights(logged / "weights", logged / "data")
    by_name: dict[str, set[bool]] = {}
    for trajectory in read_trajectories(logged / "data"):
        name = trajectory.messages[0]["content"].lower().partition(" ")[0].strip(":,")
        by_name.setdefault(name, set()).add(not any(table[trajectory.id]))
    assert len(by_name) == 12 and all(len(held) == 1 for held in by_name.values())
    assert 0 < sum(held == {True} for held in by_name.values()) < 12
    # The same ones in any data, and as many as were asked for.
    keys_N = np.random.default_rng(0).integers(-(2**63), 2**63, 20_000)
    assert is_held_out(keys_N, SHARE).mean() == pytest.approx(SHARE, abs=0.02)
    found = outcomes(read_trajectories(logged / "data")[:3], openings=True)
    assert is_held_out(found.openings, SHARE).tolist() == [not any(table[name]) for name in found.ids]


def test_likelihoods_are_those_of_a_loop_over_held_out_replies(logged: Path) -> None:
    base = str(DEFAULT_MODEL)
    made = drift.evaluate(logged / "data", {"base": base, "same": base}, seen=logged / "weights", device="cpu")
    assert made.path == logged / "likelihood" and made.kind == "likelihood"
    found = {(row["policy"], row["metric"]): row for row in json.loads((made / "estimates.json").read_text())}
    table, model = read_weights(logged / "weights", logged / "data"), load_model(base, device="cpu")[0]
    rewards = [sum(turn.step.reward for turn in t.turns) for t in read_trajectories(logged / "data")]
    sums = {name: np.zeros(2) for name in ("nll", "nll_good", "nll_bad")}
    for trajectory in read_trajectories(logged / "data"):
        if any(table[trajectory.id]):
            continue
        for turn in trajectory.turns:
            ids = torch.tensor([[*turn.prompt_ids, *turn.completion.token_ids]])
            with torch.no_grad():
                logprobs = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
            first = len(turn.prompt_ids)
            nats = -sum(float(logprobs[at - 1, ids[0, at]]) for at in range(first, ids.shape[1]))
            reward = sum(each.step.reward for each in trajectory.turns)
            for name in ("nll", "nll_good" if reward > np.mean(rewards) else "nll_bad"):
                sums[name] += [nats, ids.shape[1] - first]
    for name, (nats, tokens) in sums.items():
        assert found["base", f"held_out/{name}"]["value"] == pytest.approx(nats / tokens, rel=1e-5)
        assert found["same - base", f"held_out/{name}"]["value"] == pytest.approx(0, abs=1e-9)
    assert made.manifest["conversations"] == sum(not any(given) for given in table.values())
    assert "not that its own replies are better" in made.summary()[-1] and len(made.to_pandas()) == len(found)
    assert found["base", "held_out/nll_weighted"]["value"] is not None


Right = ScriptedPolicy(
    rule=lambda asked, seed: "<ranking>{}</ranking>".format(
        " > ".join(re.findall(r"=== conversation (\d+), assistant \w+\n<answer>", asked)) or "1 = 2"
    )
)


def test_replies_stand_side_by_side_and_a_judge_compares_them(logged: Path, tmp_path: Path) -> None:
    judge = {"policy": f"{__name__}:Right", "tasks": 9}
    models = {"base": "default", "same": str(DEFAULT_MODEL)}
    more = {"tasks": 3, "judge": judge, "max_new_tokens": 24, "out": tmp_path / "likelihood"}
    made = drift.evaluate(logged / "data", models, seen=logged / "weights", **more)
    rows = [json.loads(line) for line in (made / "replies.jsonl").read_text().splitlines()]
    assert len(rows) == 3 == len({row["opening"][0]["content"].lower() for row in rows})
    for row in rows:
        assert [each["role"] for each in row["opening"]] == ["user"] and row["logged"].startswith("<answer>")
        assert row["replies"]["base"] == row["replies"]["same"] != "" and row["preferred"] == {"base": 0.5, "same": 0.5}
    found = {(row["policy"], row["metric"]): row["value"] for row in json.loads((made / "estimates.json").read_text())}
    assert found["same", "held_out/preferred"] == 0.5 and found["same - base", "held_out/preferred"] == 0
    assert made.manifest["replies"]["judge"]["counts"] == {"calls": 6}
    told = " ".join(made.summary())
    assert "The judge finds same's reply better than another's in 0.500" in told and "Replies to 3 held-out" in told


def test_what_was_trained_is_not_measured_on(logged: Path) -> None:
    drift.weigh(logged / "data", "swift", out=logged / "all")
    with pytest.raises(ConfigError, match=r"holds no prompts out.*steps: \[\{hold_out: 0\.05\}\]"):
        drift.evaluate(logged / "data", {"base": "default"}, seen=logged / "all")
    with pytest.raises(ConfigError, match="seen: got None, expected the weights that were trained"):
        drift.evaluate(logged / "data", {"base": "default"})
    with pytest.raises(ConfigError, match=r"models\.base: got 'openai:gpt', expected a model folder or hub id"):
        drift.evaluate(logged / "data", {"base": "openai:gpt"}, seen=logged / "weights")
