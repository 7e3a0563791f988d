"""Nothing that comes with a model or with data is run: no code of a model folder, no pickle, no script in a page."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import drift
from drift.errors import PolicyError
from drift.policies import make_policy
from drift.policies.hf import load_model, load_tokenizer
from drift.policies.stored import StoredModel

PACKAGE = Path(drift.__file__).parent
RAN = "ran-the-code-of-a-model"
LOADERS: list[Callable[[str], object]] = [load_model, load_tokenizer, StoredModel, make_policy]


class Payload:
    """What a pickle can do: run a command when it is read."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self._mark),))


@pytest.mark.parametrize("load", LOADERS)
def test_pickled_weights_are_refused_unread(tiny_model: Path, tmp_path: Path, load: Callable[[str], object]) -> None:
    folder, mark = tmp_path / "model", tmp_path / RAN
    shutil.copytree(tiny_model, folder)
    torch.save({**load_file(folder / "model.safetensors"), "payload": Payload(mark)}, folder / "pytorch_model.bin")
    # Beside safetensors a pickle is of no account.
    load(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(PolicyError, match=r"weights as pytorch_model\.bin, expected \*\.safetensors: reading pickled"):
        load(str(folder))
    assert not mark.exists()


def test_a_pickle_of_that_kind_does_run(tmp_path: Path) -> None:
    torch.save({"payload": Payload(tmp_path / RAN)}, tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / RAN).exists()


def with_code(tiny_model: Path, folder: Path) -> Path:
    """A model folder of an unknown kind, whose own code leaves a mark where it is imported; returns the mark."""
    shutil.copytree(tiny_model, folder)
    mark = folder.parent / RAN
    code = f"import pathlib\npathlib.Path({str(mark)!r}).mkdir(exist_ok=True)\n"
    code += (
        "from transformers import Qwen2Config as Own, Qwen2ForCausalLM as OwnModel, Qwen2Tokenizer as OwnTokenizer\n"
    )
    (folder / "own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    maps = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of", "auto_map": maps}))
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    return mark


@pytest.mark.parametrize("load", [load_model, StoredModel, make_policy])
def test_code_that_comes_with_a_model_is_not_run(
    tiny_model: Path, tmp_path: Path, load: Callable[[str], object]
) -> None:
    mark = with_code(tiny_model, tmp_path / "model")
    with pytest.raises(PolicyError, match=r"wants code that comes with it to be run, which drift never does"):
        load(str(tmp_path / "model"))
    assert not mark.exists()


@pytest.mark.usefixtures("quick_starts")
def test_that_code_would_run_if_it_were_trusted(tiny_model: Path, tmp_path: Path) -> None:
    mark = with_code(tiny_model, tmp_path / "model")
    script = "import sys; from transformers import AutoModelForCausalLM as A, dynamic_module_utils as modules\n"
    script += "modules.HF_MODULES_CACHE = sys.argv[2]\n"
    script += "A.from_pretrained(sys.argv[1], trust_remote_code=True)"
    folders = [str(tmp_path / "model"), str(tmp_path / "modules")]
    subprocess.run([sys.executable, "-c", script, *folders], check=True, timeout=120)
    assert mark.exists()


@pytest.mark.usefixtures("quick_starts")
def test_nobody_is_asked_at_the_terminal_either(tiny_model: Path, tmp_path: Path) -> None:
    mark = with_code(tiny_model, tmp_path / "model")
    command = [sys.executable, "-m", "drift", "rollout", "arithmetic", "--tasks", "1", "--samples", "2"]
    ran = subprocess.run(
        [*command, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")],
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 2 and "which drift never does" in ran.stderr and not mark.exists(), ran.stderr


FORBIDDEN = {"eval", "exec", "compile", "__import__"}
# Between processes of one command, by a folder that only this user can read; or to itself, by a file without a name.
PICKLES = {"comparison/jobs.py", "exports/run.py", "own_process.py"}


def test_no_module_evaluates_text_or_trusts_code() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        look_at(path)


def look_at(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name):
                assert function.id not in FORBIDDEN, f"{name}:{node.lineno}"
            elif isinstance(function, ast.Attribute):
                owner = ast.unparse(function.value)
                assert (owner, function.attr) not in {("yaml", "load"), ("yaml", "unsafe_load"), ("torch", "load")}, (
                    name
                )
                assert owner not in ("pickle", "marshal", "shelve", "dill") or name in PICKLES, f"{name}:{node.lineno}"
                if function.attr == "from_pretrained" and owner.startswith("Auto"):
                    said = ast.unparse(node)
                    assert "NO_CODE" in said or "trust_remote_code=False" in said, f"{name}:{node.lineno}"
            for keyword in node.keywords:
                trusted = keyword.arg in ("trust_remote_code", "shell", "allow_pickle")
                assert not trusted or ast.unparse(keyword.value) == "False", f"{name}:{node.lineno}"


TEMPLATES = {path.name: path.read_text() for path in (PACKAGE / "reporting" / "templates").glob("*.html")}


def test_the_base_of_every_page_forbids_scripts_and_requests() -> None:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head, _, body = TEMPLATES["base.html"].partition(f'<meta http-equiv="Content-Security-Policy" content="{policy}">')
    # Before anything that a policy could come too late for.
    assert body and "<style" not in head and "{{" not in head and "{%" not in head
    assert "{% block main %}" in body


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_page_has_that_base_and_neither_scripts_nor_requests(name: str) -> None:
    text = TEMPLATES[name]
    # What a page of the base says outside of its block is not rendered.
    page = re.sub(r'\{% import "weighed\.html" as weighed %\}\n', "", text)
    macros = re.sub(r"\{%-? macro .*?endmacro -?%\}|\{#.*?#\}", "", text, flags=re.DOTALL)
    assert name == "base.html" or page.startswith('{% extends "base.html" %}\n{% block main %}') or not macros.strip()
    for never in ("<script", "javascript:", "onload=", "onclick=", "|safe", "autoescape false", "<iframe", "http://"):
        assert never not in text.lower(), never


def changed(tiny_model: Path, folder: Path, **keys: object) -> str:
    """A copy of a model folder with keys of its configuration changed."""
    shutil.copytree(tiny_model, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return str(folder)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"_attn_implementation": "org/name"}, "would fetch code from the hub and run it"),
        ({"text_config": {"attn_implementation": "org/name@main:kernel"}}, "would fetch code from the hub and run it"),
        ({"experts_implementation": "paged|org/name"}, "would fetch code from the hub and run it"),
        ({"num_hidden_layers": 10_000_000}, "num_hidden_layers is 10000000, and the files have [0-9]+ tensors"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000, which no model has"),
        ({"vocab_size": 20}, "has [0-9]+ ids that its model of 20 has not"),
        ({"num_attention_heads": 0}, "can't be loaded"),
        ({"hidden_size": "wide"}, "can't be loaded"),
        (
            {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": "x"}}},
            "can't be loaded",
        ),
    ],
)
def test_a_configuration_that_can_not_be_is_refused_at_once(
    tiny_model: Path, tmp_path: Path, keys: dict[str, object], said: str
) -> None:
    with pytest.raises(PolicyError, match=said):
        load = load_model if "quantization_config" in keys else StoredModel
        load(changed(tiny_model, tmp_path / "model", **keys))
