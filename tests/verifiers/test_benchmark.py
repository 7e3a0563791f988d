import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("math_verify")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "verifiers.py"
# One record of each answer type, in the schema of the data sets.
GSM8K = [{"question": "?", "answer": "2*9=18\n#### 18"}, {"question": "?", "answer": "#### 2,125"}]
THEOREMQA = [
    {"Question": "?", "Answer": answer, "Answer_type": kind, "Picture": None, "id": kind}
    for kind, answer in (
        ("integer", -36),
        ("float", 4e-05),
        ("bool", True),
        ("option", "(c)"),
        ("list of integer", [0, 5]),
        ("list of float", [0.333, -5.0]),
    )
]


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.slow
def test_the_benchmark_reads_the_real_schemas_and_ends_with_its_figures_as_json(tmp_path):
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in GSM8K))
    (tmp_path / "theoremqa_test.json").write_text(json.dumps(THEOREMQA))
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["gsm8k_golds"] == 4
    assert (figures["gsm8k"]["right"], figures["gsm8k"]["accepted_wrong"]) == (1.0, 0.0)
    # Six spellings of four golds, and of four neighbours of each.
    assert (figures["gsm8k"]["checks"], figures["gsm8k"]["checks_wrong"]) == (24, 96)
    assert figures["theoremqa"]["by_type"] == dict.fromkeys(sorted(r["Answer_type"] for r in THEOREMQA), 1.0)
    assert (figures["hanging"]["reason"], figures["hanging"]["others_right"]) == ("deadline", 1.0)
    assert figures["false_acceptances"] == []
    assert min(figures["checks_per_second"].values()) > 0


def test_the_benchmark_without_its_folder_says_what_it_wants():
    done = subprocess.run([sys.executable, SCRIPT, "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "theoremqa_test.json" in done.stdout
