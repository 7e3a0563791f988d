"""The Python calls: names that are not known, environments and policies of one's own, keys of a recipe, handles."""

import asyncio
import inspect
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import drift
from drift.cli import main
from drift.environments.guess import Guess
from drift.errors import ConfigError, DatasetError, Interrupted


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run of somebody's lies here under the name that a recipe gives its own."""
    monkeypatch.chdir(tmp_path)


OWN = '''
from drift.types import Completion, Step, Task

class Clock:
    """Seven tasks to train on and five to be measured on: the assistant repeats a number."""
    def __init__(self, words="say", max_turns=2):
        self.words, self.max_turns, self._secret = words, max_turns, "not told"
    def tasks(self, split, count, seed):
        names = range(7) if split == "train" else range(100, 105)
        if count > len(names):
            raise ValueError(f"clock has {len(names)} {split} tasks")
        return [Task(id=f"c{n}", group_id=f"c{n}", split=split, payload={"n": n}) for n in names][:count]
    def start(self, task):
        return Episode(self, str(task.payload["n"]))

class Episode:
    def __init__(self, clock, right):
        self.clock, self.right, self.turns = clock, right, 0
    def opening(self):
        return [{"role": "user", "content": f"{self.clock.words} {self.right}"}]
    async def step(self, reply):
        self.turns += 1
        won = reply == self.right
        done = won or self.turns == self.clock.max_turns
        more = () if done else ({"role": "user", "content": "no"},)
        return Step(messages=more, reward=float(won), done=done, success=won, answer=reply)

class Parrot:
    """Says the last word it heard, or always the same; asked ``stops`` times it is interrupted."""
    def __init__(self, word="", stops=0):
        self.word, self.stops, self.asked, self.fingerprint = word, stops, 0, f"parrot {word}"
    async def reply(self, messages, *, sampling, seed):
        self.asked += 1
        if self.asked == self.stops:
            raise KeyboardInterrupt
        text = self.word or messages[-1]["content"].split()[-1]
        return Completion(text=text, token_ids=(), logprobs=None, finish_reason="stop")

parrot, clock = Parrot(), Clock(words="repeat")
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package that is installed and declares an environment ``clock`` and a policy ``parrot``; its module."""
    from importlib import import_module

    (tmp_path / "front_of_ones_own.py").write_text(OWN)
    about = tmp_path / "front_of_ones_own-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: front-of-ones-own\nVersion: 1.0\n")
    points = (
        "[drift.environments]\nclock = front_of_ones_own:Clock\n[drift.policies]\nparrot = front_of_ones_own:Parrot\n"
    )
    (about / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield import_module("front_of_ones_own")
    sys.modules.pop("front_of_ones_own", None)


WRONG: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "rollout": (("guess",), "task", "tasks"),
    "read_logs": (("log.jsonl",), "colums", "columns"),
    "rank": (("data",), "juge", "judge"),
    "weigh": (("data",), "bta", "beta"),
    "preview": (("data", "weights"), "row", "rows"),
    "train": (("data", "weights"), "max_step", "max_steps"),
    "train_preference": (("data",), "batchsize", "batch_size"),
    "train_online": (("guess",), "round", "rounds"),
    "evaluate": (("guess",), "modles", "models"),
    "report": (("run",), "ot", "out"),
    "view": (("run",), "exprt", "export"),
    "export": (("data",), "fromat", "format"),
    "run": (("quickstart",), "dry_rn", "dry_run"),
    "compare": (("quickstart",), "method", "methods"),
    "check": (("guess",), "repiar", "repair"),
    "verify": (("replies.jsonl",), "fallbak", "fallback"),
    "push": (("model", "a/b"), "publc", "public"),
    "new": (("recipe", "mine"), "uot", "out"),
    "as_hf_dataset": (("data",), "directry", "directory"),
}


def test_every_public_function_is_here() -> None:
    assert set(WRONG) == {name for name in drift.__all__ if inspect.isfunction(getattr(drift, name))}


@pytest.mark.parametrize("name", WRONG)
def test_an_unknown_argument_gets_the_nearest_known_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, wrong, near = WRONG[name]
    with pytest.raises(ConfigError, match=rf"{wrong!r} in (drift\.)?{name}\b.*Did you mean '{near}'\?"):
        getattr(drift, name)(*arguments, **{wrong: 1})
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_of_the_package_gets_the_nearest_known_one() -> None:
    with pytest.raises(AttributeError, match="Did you mean 'rollout'"):
        drift.rolout  # noqa: B018


def test_where_drift_can_not_run_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    monkeypatch.setattr(sys, "platform", "win32")
    spec = spec_from_file_location("drift_elsewhere", drift.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=r"Linux and macOS, not on Windows\..*Subsystem for Linux"):
        spec.loader.exec_module(module_from_spec(spec))


def test_settings_within_settings_may_be_mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    path = "drift.baselines.preference.train_preference"
    monkeypatch.setattr(path, lambda data, out, **more: seen.update(more, out=out))
    assert (
        drift.train_preference(tmp_path / "data", format="kto", learning_rate=1e-5) == seen["out"] == tmp_path / "kto"
    )
    config = seen["config"]
    assert (config.format, config.pairs, config.learning_rate) == ("kto", 4, 1e-5)
    drift.train_preference(tmp_path / "data", config=config, pairs=2)
    assert seen["config"] == replace(config, pairs=2)
    with pytest.raises(ConfigError, match=r"unknown argument 'fromat'.* Did you mean 'format'"):
        drift.train_preference(tmp_path / "data", fromat="kto")
    monkeypatch.setattr("drift.rollouts.run.roll_out", lambda *given, **more: seen.update(more))
    drift.rollout("guess", cluster={"address": "auto"}, out=tmp_path / "x")
    assert seen["cluster"] == drift.ClusterConfig(address="auto")
    with pytest.raises(ConfigError, match=r"unknown setting 'adress' in ClusterConfig\. Did you mean 'address'"):
        drift.rollout("guess", cluster={"adress": "auto"}, out=tmp_path / "x")


def test_one_environment_and_policy_by_every_way_to_name_them(own: Any, tmp_path: Path) -> None:
    said = {"words": "say", "max_turns": 2}
    environments: list[tuple[Any, str, dict[str, Any]]] = [
        ("clock", "clock", {}),
        ({"name": "clock", "max_turns": 2}, "clock", {"max_turns": 2}),
        ("front_of_ones_own:Clock", "front_of_ones_own:Clock", {}),
        (own.Clock, "front_of_ones_own:Clock", {}),
        (own.Clock(), "front_of_ones_own:Clock", said),
    ]
    models = ["parrot:", "front_of_ones_own:Parrot", "front_of_ones_own:parrot", own.Parrot, own.Parrot()]
    hashes = set()
    for at, ((environment, name, settings), model) in enumerate(zip(environments, models, strict=True)):
        data = drift.rollout(environment, model=model, samples=2, out=tmp_path / str(at))
        spec = data.manifest["spec"]
        assert spec["environment"] == {"name": name, "settings": settings, "split": "train"}
        assert (spec["policy"], spec["ids"], spec["tasks"], spec["trajectories"]) == ("parrot ", "none", 7, 14)
        hashes.add(data.manifest["dataset_hash"])
    assert len(hashes) == 1
    # Without a name for the directory, the environment's own.
    assert drift.rollout(own.clock, model="parrot:5", tasks=3, samples=1) == "runs/clock/rollouts"


def test_an_evaluation_names_whose_replies_it_measured(own: Any) -> None:
    models = {"wrong": "parrot:nothing", "right": own.Parrot(), "path": "front_of_ones_own:parrot"}
    found = drift.evaluate(own.Clock(), models, samples=0)
    assert found == "runs/clock/evaluation"
    manifest = found.manifest
    assert manifest["policies"] == {
        "wrong": "parrot:nothing",
        "right": "front_of_ones_own:Parrot",
        "path": "front_of_ones_own:parrot",
    }
    assert manifest["environment"]["name"] == "front_of_ones_own:Clock" and manifest["tasks"] == 5
    rows = {(row["policy"], row["metric"]): row["value"] for row in found.to_pandas().to_dict("records")}
    assert (rows["wrong", "greedy/multi@2"], rows["right", "greedy/multi@2"]) == (0.0, 1.0)
    assert "path is better than wrong" in found._repr_html_()


def test_objects_go_on_where_they_were_interrupted_also_in_a_running_event_loop(own: Any, tmp_path: Path) -> None:
    def roll_out(stops: int = 0, word: str = "") -> drift.Artifact:
        policy = own.Parrot(word, stops=stops)
        data = drift.rollout(own.Clock(), model=policy, samples=3, concurrency=1, out=tmp_path / "data")
        asked.append(policy.asked)
        return data

    async def cell() -> drift.Artifact:
        return roll_out()

    asked: list[int] = []
    with pytest.raises(Interrupted, match="10 of 21 conversations"):
        roll_out(stops=11)
    data = asyncio.run(cell())
    assert asked == [11] and data.manifest["complete"] and data.manifest["counts"]["trajectories"] == 21
    with pytest.raises(DatasetError, match="policy"):
        roll_out(word="other")


def test_default_tasks_are_as_many_as_there_are_and_more_are_refused(own: Any, tmp_path: Path) -> None:
    data = drift.rollout("clock", model="parrot:", samples=1, out=tmp_path / "all")
    assert data.manifest["spec"]["tasks"] == 7
    assert drift.evaluate("clock", "parrot:", samples=0, out=tmp_path / "e").manifest["tasks"] == 5
    with pytest.raises(ValueError, match="clock has 7 train tasks"):
        drift.rollout("clock", model="parrot:", tasks=8, samples=1, out=tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_check_takes_the_environment_where_a_directory_has_its_name(
    own: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clock").mkdir()
    assert main(["check", "clock", "--tasks", "3"]) == 0
    assert "clock (the environment; for the directory say ./clock): " in capsys.readouterr().out
    assert main(["check", "./clock"]) == 1 and "no manifest.json" in capsys.readouterr().err
    assert drift.check(own.Clock(), tasks=3).failed == drift.check("clock", tasks=3).failed == 0
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        drift.check(Path("clock"))


@pytest.mark.parametrize(
    ("keys", "resolved"),
    [
        ({"beta": 0.3, "max_steps": 7}, {"weights": {"beta": 0.3}, "training": {"max_steps": 7}}),
        ({"weights.beta": 0.3, "rollouts.tasks": 9}, {"weights": {"beta": 0.3}, "rollouts": {"tasks": 9}}),
        ({"evaluation": {"tasks": 9}, "seed": 2}, {"evaluation": {"tasks": 9, "samples": 1}, "seed": 2}),
        ({"environment.digits": 2}, {"environment": {"name": "arithmetic", "digits": 2}}),
        (
            {"environment": {"name": "guess", "width": 40}, "policy.dtype": "float32"},
            {"environment": {"name": "guess", "width": 40}, "policy": {"dtype": "float32"}},
        ),
    ],
)
def test_a_recipe_takes_keys_bare_and_dotted(
    keys: dict[str, Any], resolved: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert drift.run("quickstart", dry_run=True, **{"evaluation.tasks": 20, **keys}) is None
    told = yaml.safe_load(capsys.readouterr().out)
    for name, value in resolved.items():
        assert told[name] == value if name in ("environment", "policy", "seed") else value.items() <= told[name].items()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"samples": 3}, "run: samples may be rollouts.samples or evaluation.samples. Say which."),
        ({"bta": 3}, "unknown key 'bta' in run. Did you mean 'beta'?"),
        ({"weights.bta": 3}, "unknown key 'weights.bta' in quickstart. Did you mean 'weights.beta'?"),
        ({"environment.digit": 3}, "Did you mean 'digits'?"),
        ({"rollouts.tasks": "many"}, "rollouts.tasks"),
    ],
)
def test_keys_that_no_recipe_has_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        drift.run("quickstart", dry_run=True, **keys)
    assert message in str(error.value)


SMALL: dict[str, Any] = {
    "max_new_tokens": 12, "rollouts.tasks": 6, "rollouts.samples": 4, "max_steps": 2, "training.batch_size": 4,
    "training.arguments.logging_steps": 2,
    "evaluation.tasks": 4, "evaluation.samples": 0, "scheme": "sft",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> drift.Run:
    """A whole run on an environment that is an object."""
    found = drift.run({"environment": Guess(width=12)}, out=tmp_path_factory.mktemp("front") / "run", **SMALL)
    assert found is not None
    return found


def test_a_run_on_an_object_names_it_and_goes_on_with_one_alike_alone(finished: drift.Run) -> None:
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    asked = {"max_turns": 5, "prompt": Guess().prompt, "width": 12}
    assert recipe["environment"] == {"name": "drift.environments.guess:Guess", **asked}
    before = (finished / "model" / "model.safetensors").stat().st_mtime_ns
    assert drift.run({"environment": Guess(width=12)}, out=finished, **SMALL) == finished
    assert (finished / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"another recipe: environment\.width: 12 -> 13"):
        drift.run({"environment": Guess(width=13)}, out=finished, **SMALL)


def test_handles_are_paths_with_manifests_tables_and_words(finished: drift.Run) -> None:
    stages = {name: getattr(finished, name) for name in ("rollouts", "weights", "model", "evaluation")}
    kinds = ["trajectories", "weights", "model", "evaluation"]
    rows = {"rollouts": 24, "weights": 24, "model": 1}
    for (name, stage), kind in zip(stages.items(), kinds, strict=True):
        assert isinstance(stage, drift.Artifact) and stage.path == Path(finished) / name == finished / name
        assert os.fspath(stage) == str(stage) == str(Path(finished) / name) and stage == str(stage)
        assert stage.manifest["kind"] == stage.kind == kind and (stage / "manifest.json").is_file()
        table = stage.to_pandas()
        assert len(table) == rows.get(name, len(table)) > 0
        assert str(stage) in repr(stage) and all(line in repr(stage) for line in stage.summary())
        assert stage._repr_html_().startswith(f"<p><b>{kind}</b> in <code>{stage}</code>")
    assert set(stages["rollouts"].to_pandas()["task_id"].value_counts()) == {4}
    assert list(stages["weights"].to_pandas().columns)[:1] == ["id"]
    assert finished.manifest == stages["evaluation"].manifest and "tuned" in finished._repr_html_()
    assert len(finished.to_pandas()) == len(stages["evaluation"].to_pandas())
    assert drift.check(finished).failed == 0


def test_handles_are_taken_wherever_paths_are(finished: drift.Run, tmp_path: Path) -> None:
    weights = drift.weigh(finished.rollouts, "rft", out=tmp_path / "weights")
    assert weights.manifest["dataset_hash"] == finished.rollouts.manifest["dataset_hash"]
    with pytest.raises(ConfigError, match="were also rolled out"):
        drift.evaluate(Guess(width=12), finished.model, tasks=4, seen=finished / "evaluation" / "greedy" / "base")
    page = drift.report(finished, out=tmp_path / "page.html")
    assert os.fspath(page) == str(tmp_path / "page.html") and page._repr_html_().startswith("<iframe srcdoc=")
    assert len(drift.as_hf_dataset(finished.rollouts)) == 24
    assert drift.export(finished.rollouts, out=tmp_path / "rows.jsonl", format="kto")["counts"]["rows"] == 24
