"""Peak memory of one training step with a large vocabulary: drift, plain rows, and TRL's SFTTrainer.

    python benchmarks/memory.py [VOCABULARY]

Each runs in a process of its own, which measures the highest resident size above what it had before the model was made:
weights, gradients, activations and logits. The last line is JSON with every figure.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

SHAPE = {"prompts": 1, "samples": 8}
# Rows at a time of plain rows and of TRL; drift takes all eight at once.
BATCH = 4


def measure(variant: str, vocabulary: int) -> dict[str, float]:
    """Megabytes above the start after one step, and those of weights and gradients, in this process."""
    import torch
    from shapes import Shape, make_model, make_rows

    from training import Variants, trl_variants

    shape = Shape(**SHAPE, vocabulary=vocabulary)
    rows = make_rows(shape)
    # Whatever is loaded for any model is loaded before.
    torch.randn(64, 64) @ torch.randn(64, 64)
    small = Shape(prompts=1, samples=2, prompt_tokens=8, reply_tokens=8, vocabulary=8)
    if variant.startswith("trl"):
        trl_variants(make_rows(small), 8, batch=2, only=variant)[variant]()
    else:
        getattr(Variants(make_model(vocabulary=8), make_rows(small)), variant)()
    before = _resident()
    if variant.startswith("trl"):
        run: Any = trl_variants(rows, vocabulary, batch=BATCH, only=variant)[variant]
        parameters = sum(p.numel() for p in make_model(vocabulary=8).parameters()) + 2 * 256 * (vocabulary - 8)
    else:
        model = make_model(vocabulary=vocabulary)
        run = getattr(Variants(model, rows, BATCH), variant)
        parameters = sum(p.numel() for p in model.parameters())
    run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak": peak - before, "weights_and_gradients": 2 * 4 * parameters / 2**20}


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Run each variant in a process of its own and print megabytes and ratios."""
    vocabulary = int(sys.argv[1]) if len(sys.argv) > 1 else 151_936
    found: dict[str, dict[str, float]] = {}
    for variant in ("drift_exact", "plain", "trl"):
        command = [sys.executable, __file__, str(vocabulary), variant]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{variant}: not run: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        found[variant] = json.loads(done.stdout.splitlines()[-1])
    ours = found["drift_exact"]
    for variant, figures in found.items():
        over = figures["peak"] - figures["weights_and_gradients"]
        print(f"{variant:12s} peak {figures['peak']:7.0f} MB, of which {over:7.0f} MB beyond weights and gradients")
    ratios = {name: ours["peak"] / figures["peak"] for name, figures in found.items()}
    print(json.dumps({"benchmark": "memory", "vocabulary": vocabulary, "shape": SHAPE, "mb": found, "ratio": ratios}))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[1]))))
    else:
        main()
