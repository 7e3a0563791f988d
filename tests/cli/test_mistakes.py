"""Mistakes that people make with data and weights at hand: a line that says what to do, and nothing written or lost."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drift.cli import main
from drift.dataset.store import TrajectoryWriter
from drift.types import Trajectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a ``data`` set, its ``weights``, a ``model`` of somebody's, a ``file`` and a ``log.jsonl`` lie."""
    return tmp_path_factory.mktemp("mistakes")


@pytest.fixture
def kept(
    folder: Path, make_trajectory: Callable[..., Trajectory], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, bytes]]:
    """Every file of the working directory, by name; it must be there unchanged in the end."""
    monkeypatch.chdir(folder)
    if not (folder / "data").is_dir():
        with TrajectoryWriter(Path("data"), {"trajectories": 4, "policy": "p"}, []) as writer:
            for at in range(4):
                writer.append(make_trajectory(f"t{at // 2}", at % 2, ("1", None), at == 0))
            writer.finish()
        assert main(["weigh", "data", "--scheme", "sft", "--out", "weights"]) == 0
        Path("model").mkdir()
        Path("model", "config.json").write_text("{}")
        Path("file").write_text("notes")
        Path("tabs.yaml").write_text("weights:\n\tbeta: 1\n")
        Path("log.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}], "score": 1}\n')
    before = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    yield before
    assert {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


TRAIN = "train data weights --max_steps 1"
GUESS = "evaluate guess --models.base default --tasks 2 --samples 0"
MISTAKES = [
    # What is there already would be written over.
    (
        "weigh data --out data",
        1,
        "data holds trajectories, and weights would be written over it. Give another directory",
    ),
    (f"{TRAIN} --out data", 1, "data holds trajectories, and model would be written over it. Give another"),
    (f"{TRAIN} --out weights", 1, "weights holds weights, and model would be written over it. Give another"),
    (f"{TRAIN} --model model --out model", 1, "model holds a model that was not trained there. Give another directory"),
    (f"{GUESS} --out data", 1, "data holds trajectories, and evaluation would be written over it. Give another"),
    (
        "rollout guess --out weights",
        1,
        "weights holds weights, and trajectories would be written over it. Give another",
    ),
    ("import log.jsonl --out weights", 1, "weights holds weights, and trajectories would be written over it."),
    ("rollout guess --out file", 1, "file is a file, expected a directory for trajectories. Give another one as out."),
    ("weigh data --out file", 1, "file is a file, expected a directory for weights. Give another one as out."),
    # One thing for another.
    ("train weights data --out x", 1, "weights/manifest.json: holds weights, expected trajectories. Check which"),
    ("train data data --out x", 1, "data/manifest.json: holds trajectories, expected weights. Check which directory"),
    ("preview weights data", 1, "weights/manifest.json: holds weights, expected trajectories. Check which directory"),
    ("report data", 1, "data/manifest.json: holds trajectories, expected evaluation. Check which directory"),
    ("run data", 2, "recipe data is a directory. Give a file of YAML; a run has data/recipe.yaml."),
    # What is missing, or too much.
    ("export data --format kto", 2, "drift export needs --out. For example: drift export run/rollouts --format kto"),
    ("weigh data weights", 2, "too many arguments, or options without --: weights. See drift weigh --help."),
    ("rollout guess -o x", 2, "too many arguments, or options without --: -o x. See drift rollout --help."),
    ("rollout gymnasium --out x", 2, "environment 'gymnasium' needs id. Give environment.id."),
    ("rollout openenv --out x", 2, "'openenv' needs url and environment. Give environment.url and environment.envir"),
    # Values.
    ("rollout guess --environment.width twenty --out x", 2, "Its settings are max_turns: int = 5, width: int = 20"),
    ("rollout guess --tasks 1e22 --out x", 2, "--tasks: got 1e22, expected a whole number or null."),
    (f"rollout guess --samples {10**22} --out x", 2, f"got {10**22}, expected a whole number from 1 to 100,000"),
    (f"evaluate guess --models.base default --samples {10**22}", 2, f"got {10**22}, expected a whole number from 0"),
    (f"{TRAIN} --lora r=8 --out x", 2, "--lora: got r=8, expected keys and values: --lora.KEY VALUE."),
    ("evaluate guess --models base=default --out x", 2, "expected keys and values: --models.KEY VALUE."),
    (f"{TRAIN} --model default --out x", 1, "data was sampled by another policy (p) than 'default'"),
    ("weigh data --scheme refit --repetition 3 --out x", 2, "scheme to {refit: {shift: true}}, or scheme to swift."),
    (
        "weigh data --scheme awr --w_max big --out x",
        2,
        "awr_weights can't work with the settings beta=0.1, w_max='big'",
    ),
    ("export data --format kto --out data", 1, "data can't be written: Is a directory. Give another path."),
    ("run tabs.yaml", 2, "tabs.yaml can't be read as YAML: while scanning for the next token found character '\\t'"),
]


@pytest.mark.parametrize(("line", "code", "message"), MISTAKES, ids=[line for line, *_ in MISTAKES])
@pytest.mark.usefixtures("kept")
def test_a_mistake_gets_a_line_that_says_what_to_do_and_changes_nothing(
    line: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == code
    said = capsys.readouterr()
    assert said.err.startswith("drift: ") and message in said.err and said.err.count("\n") == 1 and not said.out
