"""The recipes of the papers: what they say, and that they run, small, on local files of the hub's schema."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import drift
from drift.dataset.store import read_trajectories
from drift.environments import make_environment
from drift.errors import ConfigError
from drift.recipe import built_in_recipes, load_values, make_recipe

PAPERS = ("drift-paper", "refit-paper", "swift-paper")


def metamath(path: Path) -> Path:
    rows = [
        {"type": kind, "query": f"What is {a} + {a + 7}?", "response": f"Added up. The answer is: {2 * a + 7}"}
        for a in range(11, 31)
        for kind in (("MATH_AnsAug",) if a % 2 else ("GSM_Rephrased",))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def math500(path: Path) -> Path:
    rows = [{"problem": f"What is {a} + {a + 8}?", "answer": str(2 * a + 8)} for a in range(31, 36)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arc(path: Path, start: int) -> Path:
    rows = [
        {
            "question": f"What is {a} + 5?",
            "choices": {"label": list("ABCD"), "text": [str(a + 5 + by) for by in (3, 0, 1, 2)]},
            "answerKey": "B",
        }
        for a in range(start, start + 12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files(name: str, folder: Path) -> dict[str, Any]:
    if name == "drift-paper":
        train, test = metamath(folder / "train.jsonl"), math500(folder / "test.jsonl")
        return {"environment.train_file": str(train), "environment.test_file": str(test)}
    train, test = arc(folder / "train.jsonl", 11), arc(folder / "test.jsonl", 41)
    # In place of the judge behind a server one that draws its scores, so that rewards differ.
    judge = {"policy": "scripted:<score>8</score>|<score>3</score>|<score>5</score>", "sampling": {"temperature": 1}}
    return {"environment.train_file": str(train), "environment.test_file": str(test), "environment.judge": judge}


SMALL: dict[str, Any] = {
    "model": "default", "max_new_tokens": 12, "rollouts.tasks": 6, "rollouts.samples": 4, "evaluation.tasks": 4,
    "max_steps": 2, "epochs": 0, "training.batch_size": 4, "training.dtype": "float32",
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_nothing_stands_in_the_way_of_a_papers_recipe(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drift.run(name, dry_run=True, **SMALL, **files(name, tmp_path)) is None
    assert "scheme:" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_recipe_runs_small_on_local_files(name: str, tmp_path: Path) -> None:
    keys = {**SMALL, **files(name, tmp_path)}
    run = drift.run(name, out=tmp_path / "run", **keys)
    assert run is not None and run.evaluation.manifest["tasks"] == 4
    opening = read_trajectories(run.rollouts)[0].messages[0]["content"]
    assert opening.startswith("Turn 1, 5 actions left.\nState: What is" if name == "drift-paper" else "What is")


def test_recipes_say_what_was_published() -> None:
    assert {*PAPERS, "logs"} <= built_in_recipes().keys()
    made = {name: make_recipe(load_values(built_in_recipes()[name]), name) for name in PAPERS}
    first = made["drift-paper"]
    assert (first.rollouts.tasks, first.rollouts.samples, first.sampling.max_new_tokens) == (1800, 16, 512)
    chain = first.weights.chain
    assert (chain.scheme.name, chain.settings, chain.gamma, chain.repetition) == ("drift", {"beta": 0.1}, 0.9, 0.5)
    assert (chain.turns.name, chain.steps, first.weights.format_failure) == ("terminal", (), 0)
    training = first.training
    assert (training.batch_size, training.max_steps, training.learning_rate, training.warmup) == (128, 200, 5e-6, 0.1)
    assert (training.plan, training.normalization, training.dtype) == ("uniform", "sum", "bfloat16")
    for name in ("refit", "swift"):
        chain = made[f"{name}-paper"].weights.chain
        assert (chain.scheme.name, chain.turns.name, chain.steps, chain.repetition) == (name, "all", (), 0)
        recipe = made[f"{name}-paper"]
        assert (recipe.rollouts.tasks, recipe.rollouts.samples, recipe.evaluation.tasks) == (400, 3, 100)
        assert recipe.weights.outcome == "reward" and make_environment(recipe.environment).max_turns == 3


def test_what_is_said_may_depend_on_the_turn(tmp_path: Path) -> None:
    texts = ("Wrong, {left} left.", "Wrong again: {reward}. Turn {turn}.")
    settings = {"prompt": "Turn {turn} of {left}: {question}", "feedback": texts, "max_turns": 4}
    made = make_environment(
        {"name": "math", "train_file": str(metamath(tmp_path / "m.jsonl")), "train": "metamath"} | settings
    )
    (task,) = made.tasks("train", 1, 1)
    episode = made.start(task)
    # Braces of the question's own stay.
    assert episode.opening()[0]["content"] == f"Turn 1 of 4: {task.payload['question']}"

    async def said() -> list[str]:
        steps = [await episode.step("<answer>0</answer>") for _ in range(4)]
        return [message["content"] for step in steps for message in step.messages]

    assert asyncio.run(said()) == ["Wrong, 3 left.", "Wrong again: 0. Turn 3.", "Wrong again: 0. Turn 4."]
    for wrong in ("", (), ("a", "")):
        with pytest.raises(ConfigError, match=r"environment\.feedback"):
            make_environment({"name": "arithmetic", "feedback": wrong})


def test_type_and_split_of_a_problem_set_are_settings(tmp_path: Path) -> None:
    file = str(metamath(tmp_path / "m.jsonl"))

    def counts(train: Any) -> dict[str, int]:
        made = make_environment({"name": "math", "train": train, "train_file": file})
        found: dict[str, int] = made.source_counts("train")
        return found

    assert counts("metamath") == {"rows": 20, "problems": 10, "left_out_other_type": 10}
    assert counts({"name": "metamath", "type": "GSM_*"}) == {"rows": 20, "problems": 10, "left_out_other_type": 10}
    assert counts({"name": "metamath", "type": "*"}) == {"rows": 20, "problems": 20}
    for train, message in (
        ({"name": "metamath", "typ": "*"}, r"unknown setting 'typ'.* Did you mean 'type'\?"),
        ({"name": "metamat"}, r"Did you mean 'metamath'\?"),
        ({"type": "*"}, r"environment\.train: got .*expected a problem set"),
        ({"name": "metamath", "split": "train[:9]"}, r"environment\.train\.split: got .* none with train_file"),
        ({"name": "arithmetic", "split": "train[:9]"}, r"environment\.train\.split"),
    ):
        with pytest.raises(ConfigError, match=message):
            counts(train)


def test_the_returns_of_the_authors_code_to_the_digit(tmp_path: Path) -> None:
    def row(*answers: str | None) -> dict[str, Any]:
        by_turn = {f"t{at}": answer for at, answer in enumerate(answers, 1)}
        said = [text for answer in answers for text in ("What is 12 + 30?", f"It is {answer}.")]
        return {
            "messages": [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)],
            "turn_rewards": {turn: float(answer == "42") for turn, answer in by_turn.items()},
            "t_star": len(answers) if answers[-1] == "42" else None,
            "answer_norms": [answer for answer in answers if answer is not None],
            "reward_details": {turn: {"actions": [] if a is None else [a]} for turn, a in by_turn.items()},
            "prompt_id": "p",
        }

    held = [
        ("42",), ("41", "42"), ("41", "41", "42"), ("41", None, "42"), ("41", None, "41", "40", None), (None, None),
        ("40",) * 5,
    ]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row(*answers)) + "\n" for answers in held))
    data = drift.read_logs(tmp_path / "log.jsonl", format="drift", out=tmp_path / "data")

    def returns(**settings: Any) -> list[float]:
        found = drift.weigh(data, "drift", out=tmp_path / f"weights{len(settings)}", **settings).to_pandas()
        return [float(value) for value in found.sort_values("id")["return"]]

    def published(answers: tuple[str | None, ...], *, code: bool) -> float:
        """Eq. 12; the authors' code divides by readable answers and fines unreadable replies."""
        read = [answer for answer in answers if answer is not None]
        over = len(read) if code else len(answers)
        repeated = 1 - len(set(read)) / over if over else 0.0
        solved = 0.9 ** (len(answers) - 1) if answers[-1] == "42" else 0.0
        return solved - 0.5 * repeated - (0.1 * (len(answers) - len(read)) if code else 0.0)

    assert returns() == pytest.approx([published(answers, code=False) for answers in held], abs=1e-12)
    code = returns(repetition_over="answers", format_failure=0.1)
    assert code == pytest.approx([published(answers, code=True) for answers in held], abs=1e-12)
    assert code == pytest.approx([1, 0.9, 0.81 - 0.5 / 3, 0.71, -0.5 / 3 - 0.2, -0.2, -0.4], abs=1e-12)
