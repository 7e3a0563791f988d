"""To the hub: a model folder and its card, no checkpoints and no conversations."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from drift.artifacts import MODEL
from drift.checksums import damaged_files
from drift.errors import ConfigError, DatasetError, require
from drift.keywords import by_fields
from drift.manifest import read_manifest
from drift.publishing.card import CARD, model_card, write_card

# What loads the model, and its card. All else, which may name paths of this machine, stays here.
FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "*.jinja",
    "special_tokens_map.json", "adapter_config.json", CARD,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was, or in a dry run would be, uploaded: ``files`` of ``folder`` to ``address``, with ``card``."""

    address: str
    folder: Path
    files: tuple[str, ...]
    card: str
    dry_run: bool

    def __str__(self) -> str:
        size = sum((self.folder / name).stat().st_size for name in self.files)
        would = "would upload" if self.dry_run else "uploaded"
        told = f"{would} {len(self.files)} files ({size / 1e6:,.1f} MB) to {self.address}: {', '.join(self.files)}"
        return f"{self.card}\n{told}" if self.dry_run else told


@by_fields()
def push(
    model: str | os.PathLike[str],
    repository: str,
    *,
    adapter: bool = False,
    public: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Upload a model that drift trained to the hub, with a card written from its manifests.

    Args:
        model: the model folder.
        repository: where to, as OWNER/NAME; it is made if it is not there.
        adapter: upload the LoRA adapter alone, which is added to its base.
        public: let everybody see a repository that is made; it is private unless you say so.
        dry_run: upload nothing; show the card and the files.

    Raises:
        ConfigError: no such name, no adapter, or the hub refuses or can't be reached.
        DatasetError: not a model that drift trained, or damaged.
    """
    place = Path(model)
    require(repository.count("/") == 1, "repository", repository, "OWNER/NAME")
    read_manifest(place, MODEL)
    damage = damaged_files(place)
    if damage:
        raise DatasetError(f"{place} is damaged: {'; '.join(damage)}. Train it again, or restore the files.")
    folder = place / "adapter" if adapter else place
    if not folder.is_dir():
        raise ConfigError(f"adapter: there is none in {place}: it was not trained with training.lora. Push the model.")
    card = model_card(place, adapter=adapter)
    if not dry_run:
        write_card(place)
    files = {path.name for pattern in FILES for path in folder.glob(pattern) if path.is_file()}
    address = f"https://huggingface.co/{repository}" if dry_run else _upload(folder, repository, sorted(files), public)
    return Pushed(address=address, folder=folder, files=tuple(sorted(files)), card=card, dry_run=dry_run)


def _upload(folder: Path, repository: str, files: list[str], public: bool) -> str:
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        address = str(hub.create_repo(repository, private=not public, exist_ok=True))
        hub.upload_folder(folder_path=folder, repo_id=repository, allow_patterns=files)
    except Exception as error:
        # Of the hub, of the network, of the disk: classes that differ with the library below.
        told = str(error).rstrip(".")
        raise ConfigError(
            f"repository: {repository} can't be written to: {told}. Check its name, that you are logged in (hf auth "
            "login) and may write there, and that the hub can be reached."
        ) from error
    return address
