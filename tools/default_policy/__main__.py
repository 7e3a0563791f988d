"""``python -m tools.default_policy --out DIR``: make the policy, and print how it behaves."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from tools.default_policy.config import PretrainConfig
from tools.default_policy.make import make_default_policy


def main(arguments: list[str] | None = None) -> None:
    """Parse ``arguments``, those of the command line if none are given, and make the policy."""
    parser = ArgumentParser(prog="python -m tools.default_policy", description="Make the policy that ships with drift.")
    parser.add_argument("--out", type=str, required=True, help="the model folder")
    parser.add_class_arguments(PretrainConfig, as_group=False)
    settings = vars(parser.instantiate(parser.parse_args(arguments)))
    out = Path(settings.pop("out"))
    manifest = make_default_policy(PretrainConfig(**settings), out)
    print(f"{out}: {manifest['parameters']:,} parameters, loss {manifest['loss']:.4f} nats per token")
    for key, value in manifest["calibration"].items():
        print(f"{key}: {value:.3f}")


if __name__ == "__main__":
    main()
