import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from drift.api import rank, read_logs, weigh
from drift.audit import check
from drift.dataset.store import read_trajectories
from drift.errors import DatasetError, EnvironmentFault
from drift.policies.scripted import ScriptedPolicy
from drift.verifiers.ranking import read_ranking

ASKED: list[str] = []


def by_number(asked: str, seed: int) -> str:
    """Ranks conversations by the number that the assistant says in each; equal numbers tie."""
    ASKED.append(asked)
    said = re.findall(r"=== conversation (\d+), assistant \w+\nI say (\d+)", asked)
    levels = sorted({int(number) for _, number in said}, reverse=True)
    ranking = " > ".join(" = ".join(place for place, n in said if int(n) == level) for level in levels)
    return f"<think>hm <ranking>1</ranking></think>So: <ranking>{ranking}</ranking>"


Fair = ScriptedPolicy(rule=by_number)
FirstIsBest = ScriptedPolicy(rule=lambda asked, seed: "<ranking>1 > 2 > 3</ranking>")
Mute = ScriptedPolicy(rule=lambda asked, seed: "I like them all.")
FAIR, FIRST, MUTE = ({"policy": f"{__name__}:{name}"} for name in ("Fair", "FirstIsBest", "Mute"))


def row(prompt: str, reply: str, reward: float) -> str:
    said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    return json.dumps({"messages": said, "reward": reward})


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts of three conversations, and one of a single one; rewards say the reverse of the numbers."""
    folder = tmp_path_factory.mktemp("logged")
    rows = [("red", 3), ("red", 1), ("red", 2), ("blue", 5), ("blue", 5), ("blue", 4), ("green", 9)]
    lines = [
        {
            "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"I say {n}"}],
            "reward": -n,
        }
        for prompt, n in rows
    ]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return Path(read_logs(folder / "log.jsonl", out=folder / "data"))


def test_rewards_are_shares_beaten_and_weigh_takes_them(logged: Path, tmp_path: Path) -> None:
    ranking = rank(logged, out=tmp_path / "ranking", judge=FAIR)
    said = {t.id: int(t.turns[0].completion.text.split()[-1]) for t in read_trajectories(logged)}
    found = dict(zip(*pq.read_table(ranking / "rewards.parquet").to_pydict().values(), strict=True))
    wanted = {3: 1.0, 2: 0.5, 1: 0.0, 5: 0.75, 4: 0.0}
    assert found == {name: wanted[number] for name, number in said.items() if number != 9}
    told = ranking.manifest["disagreement"]
    assert told == {"orders": {"share": 0.0, "pairs": 5}, "logged": {"share": 1.0, "pairs": 5}}
    assert "100% of 5 pairs" in repr(ranking) and "1 conversations are the only ones" in repr(ranking)
    weights = weigh(logged, "group_relative", rewards=ranking, steps=[{"skip_small": None}, {"bound_negative": 1}])
    frame = weights.to_pandas().set_index("id")
    for name, reward in found.items():
        group = [found[other] for other in found if other.rpartition("#")[0] == name.rpartition("#")[0]]
        assert frame["weights"][name][0] == pytest.approx(reward - np.mean(group)), name
    assert weights.manifest["chain"]["outcome"] == "reward" and weights.manifest["excluded"]["unlabelled"] == 1
    # Swift of the log itself weighs the other way round.
    assert weigh(logged, "swift", out=tmp_path / "own").to_pandas().set_index("id")["weights"][min(found)][0] != 0


def test_what_was_ranked_is_not_asked_again_and_other_data_is_refused(logged: Path, tmp_path: Path) -> None:
    first = rank(logged, out=tmp_path / "ranking", judge=FAIR).manifest
    asked = len(ASKED)
    assert rank(logged, out=tmp_path / "ranking", judge=FAIR).manifest["file_sum"] == first["file_sum"]
    assert len(ASKED) == asked
    (tmp_path / "log.jsonl").write_text(row("x", "y", 1))
    other = read_logs(tmp_path / "log.jsonl", out=tmp_path / "other")
    with pytest.raises(DatasetError, match="rates other data"):
        weigh(other, "sft", rewards=tmp_path / "ranking")
    with pytest.raises(DatasetError, match="no prompt has two"):
        rank(other, out=tmp_path / "second", judge=FAIR)
    file = tmp_path / "ranking/rewards.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    assert check(tmp_path / "ranking").failed == 1
    with pytest.raises(DatasetError, match="not what its manifest"):
        weigh(logged, "sft", rewards=tmp_path / "ranking")


def test_a_judge_that_prefers_whoever_comes_first_gives_nothing_away(logged: Path, tmp_path: Path) -> None:
    ranking = rank(logged, out=tmp_path / "ranking", judge=FIRST)
    assert set(ranking.to_pandas()["reward"]) == {0.5}
    assert ranking.manifest["disagreement"]["orders"] == {"share": 1.0, "pairs": 6}


def test_a_judge_that_ranks_nothing_is_an_error(logged: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"ranked no prompt.*no_ranking 9"):
        rank(logged, out=tmp_path / "ranking", judge=MUTE)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("<ranking>2 > 1 > 3</ranking>", [[1], [0], [2]]),
        ("no <ranking>1</ranking>, <ranking>3>1=2</ranking>", [[2], [0, 1]]),
        ("<ranking>1, 2 > 3</ranking>", [[0, 1], [2]]),
        ("<ranking>2 &gt; 1 &gt; 3</ranking>", [[1], [0], [2]]),
        ("<ranking>2 > 1</ranking>", "not_all_ranked"),
        ("<ranking>2 > 2 > 3</ranking>", "not_all_ranked"),
        ("<ranking>2 > 1 > 4</ranking>", "not_all_ranked"),
        ("<ranking>the second</ranking>", "not_a_ranking"),
        ("<ranking></ranking>", "not_a_ranking"),
        ("<ranking>2 > 1 > 3", "not_a_ranking"),
        ("2 > 1 > 3", "no_ranking"),
        ("<think><ranking>2 > 1 > 3</ranking>", "no_ranking"),
    ],
)
def test_a_ranking_is_read_or_says_why_not(reply: str, found: list[list[int]] | str) -> None:
    assert read_ranking(reply, 3) == ((found, "") if isinstance(found, list) else (None, found))
