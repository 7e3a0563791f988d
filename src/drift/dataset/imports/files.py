"""Rows of a log, whatever it lies in: JSON Lines, JSON, CSV or Parquet, packed or not, in files, folders, the hub."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from drift.dataset.imports.base import BadRow, Fields, is_empty, show
from drift.dataset.imports.shapes import attributes_of, messages, shape_of
from drift.dataset.schema import DAMAGED
from drift.dataset.store import KIND, count_trajectories, shards
from drift.errors import DatasetError
from drift.manifest import MANIFEST, read_manifest

_CHUNK = 1 << 20
_BATCH = 64
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh9": "bz2"}
# What is packed in ways that are not read, by how it begins.
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\xfd7zXZ": "packed with xz", b"7z\xbc\xaf": "a 7z archive"}
_TABLES = {".csv", ".tsv"}
_ENDINGS = {".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".zst", ".bz2", ".txt", ".log"}
# Files of a folder that hold no rows, whatever their names end in.
_BESIDE = {"metadata.json", "dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json"}
# Lines that are looked at to tell JSON Lines from JSON that spans lines.
_FIRST_LINES = 20
# Names under which exports put their rows, and fields of what lies inside a row.
_WRAPPERS = ("rows", "data", "items", "records", "results", "outputs", "examples", "traces", "spans")
_OF_A_ROW = {"role", "from", "messages_and_choices"}
Row = tuple[int, object]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A log that was looked through.

    Attributes:
        path: the file or folder, as it was named.
        sha256: of all its bytes; of a data set of drift, its ``dataset_hash``.
        rows: how many lines or rows it has, empty lines included.
        files: its files, each with the number of its first row and how it is read.
        passed_over: files of a folder that are no logs by their names.
    """

    path: Path
    sha256: str
    rows: int
    files: tuple[tuple[int, _File], ...]
    passed_over: int = 0

    def __iter__(self) -> Iterator[Row]:
        """Number of the line or row, from 1, and the value there, or the ``BadRow`` that it is."""
        for start, file in self.files:
            yield from ((start + number, value) for number, value in file.read())


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    kind: str = "lines"
    packed: str | None = None
    encoding: str = "utf-8"

    def read(self) -> Iterator[Row]:
        """Its rows; raises ``DatasetError`` where it breaks off."""
        try:
            yield from getattr(self, f"_{self.kind}")()
        except (*DAMAGED, csv.Error) as error:
            raise _unreadable(self.path, error) from error

    def bytes(self) -> IO[bytes]:
        """Its bytes, unpacked."""
        if self.packed is None:
            return self.path.open("rb")
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(self.path)), self.packed), _CHUNK)

    def _text(self) -> IO[str]:
        # Only a line feed ends a line of JSON Lines: U+2028 and U+0085 stand inside texts.
        return io.TextIOWrapper(self.bytes(), encoding=self.encoding, newline="\n")

    def _lines(self) -> Iterator[Row]:
        if self.encoding not in ("utf-8", "utf-8-sig"):
            yield from self._decoded_lines()
            return
        with self.bytes() as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    value = _parsed(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw)
                    yield from ((line, each) for each in _spans_or(value))

    def _decoded_lines(self) -> Iterator[Row]:
        with self._text() as file:
            try:
                for line, words in enumerate(file, start=1):
                    if words.strip():
                        yield line, _parsed(words.encode("utf-8", "surrogatepass"))
            except UnicodeDecodeError as error:
                raise DatasetError(f"{self.path} can't be read: {error}. Write it in UTF-8.") from error

    def _elements(self) -> Iterator[Row]:
        """The elements of one JSON list, one at a time."""
        decoder, number, held, at = json.JSONDecoder(), 0, "", 0
        with self._text() as file:
            held = file.read(_CHUNK).lstrip("\ufeff")
            at = held.index("[") + 1
            more = _CHUNK
            while True:
                while at < len(held) and held[at] in " \t\r\n,":
                    at += 1
                if held[at : at + 1] == "]":
                    return
                try:
                    value, at = decoder.raw_decode(held, at)
                except RecursionError as error:
                    yield number + 1, _bad_json(error, held[at:])
                    return
                except ValueError as error:
                    chunk = file.read(more)
                    if not chunk:
                        yield number + 1, _bad_json(error, held[at:])
                        return
                    # An element longer than what is held is read again from its start: ever larger pieces.
                    held, at, more = held[at:] + chunk, 0, more * 2
                    continue
                number, more = number + 1, _CHUNK
                yield from ((number, each) for each in _spans_or(value))

    def _document(self) -> Iterator[Row]:
        """The rows inside one JSON object."""
        with self._text() as file:
            try:
                document = json.loads(file.read().lstrip("\ufeff"))
            except (ValueError, RecursionError) as error:
                yield 1, _bad_json(error, "")
                return
        yield from enumerate(rows_of(document), start=1)

    def _table(self) -> Iterator[Row]:
        csv.field_size_limit(1 << 30)
        with io.TextIOWrapper(self.bytes(), encoding=self.encoding, newline="") as file:
            try:
                header = file.readline()
                # The header's names tell what parts the cells: Excel writes semicolons where a comma is decimal.
                delimiter = max("\t,;|" if ".tsv" in self.path.suffixes else ",;\t|", key=header.count)
                reader = csv.DictReader(itertools.chain([header], file), delimiter=delimiter)
                reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
                for number, row in enumerate(reader, start=1):
                    extra = row.pop(None, None)
                    fault = BadRow("bad_field", f"{len(extra or ())} cells more than the header has names")
                    yield number, row if extra is None else fault
            except UnicodeDecodeError as error:
                raise DatasetError(f"{self.path} can't be read: {error}. Write it in UTF-8.") from error

    def _parquet(self) -> Iterator[Row]:
        line = 0
        for batch in pq.ParquetFile(self.path).iter_batches(batch_size=_BATCH):
            for row in batch.to_pylist():
                line += 1
                yield line, _without_nulls(row)


def open_source(path: Path) -> Source:
    """Look through a log: its files, what each is, how many rows there are, and whether they can be read to the end.

    Raises:
        DatasetError: there is no such file, it can't be read or breaks off, or a folder holds no log.
    """
    if (path / MANIFEST).is_file():
        rows, parts = count_trajectories(path), shards(path)
        sizes = [pq.read_metadata(part).num_rows for part in parts]
        starts = [sum(sizes[:at]) for at in range(len(sizes))]
        files = [_File(path=part, kind="parquet") for part in parts]
        digest = read_manifest(path, KIND)["dataset_hash"]
        return Source(path=path, sha256=digest, rows=rows, files=tuple(zip(starts, files, strict=True)))
    folder, passed_over = path, 0
    is_id = str(path).count("/") == 1 and not str(path).startswith((".", "/", "~")) and path.suffix not in _ENDINGS
    if is_id and not path.exists():
        folder = _fetched(str(path))
    paths = [folder]
    if folder.is_dir():
        everything = sorted(each for each in folder.rglob("*") if each.is_file())
        paths = [each for each in everything if _is_log(each, folder)]
        passed_over = len(everything) - len(paths)
        if not paths:
            raise DatasetError(f"{path} holds no log: expected files that end in {', '.join(sorted(_ENDINGS))}.")
    digest, total, found = hashlib.sha256(), 0, []
    for each in paths:
        try:
            file, rows = _look(each, digest)
        except DAMAGED as error:
            raise _unreadable(each, error) from error
        found.append((total, file))
        total += rows
    return Source(path=path, sha256=digest.hexdigest(), rows=total, files=tuple(found), passed_over=passed_over)


def _spans_or(value: object) -> list[object]:
    """The spans of one export of OTLP, or the value itself."""
    return rows_of(value) if isinstance(value, Mapping) and "resourceSpans" in value else [value]


def rows_of(document: object) -> list[object]:
    """The rows inside one JSON value: spans of OTLP, the one list of an object, or the value itself."""
    if isinstance(document, list):
        return document
    if not isinstance(document, Mapping):
        return [document]
    if isinstance(document.get("resourceSpans"), list):
        return [
            {**span, "attributes": attributes_of(span.get("attributes"))}
            for resource in document["resourceSpans"]
            for scope in resource.get("scopeSpans") or resource.get("instrumentationLibrarySpans") or ()
            for span in scope.get("spans", ())
        ]
    lists = {name: value for name, value in document.items() if isinstance(value, list) and value}
    known = [lists[name] for name in _WRAPPERS if name in lists]
    rows = known[0] if known else next(iter(lists.values())) if len(lists) == 1 else []
    shaped, shape = all(map(_is_row, rows)), shape_of(Fields(document))
    beside = not known and any(isinstance(value, dict) for value in document.values())
    if (not shaped and (shape is not None or beside)) or shape not in (None, messages):
        return [document]
    if not rows or not all(isinstance(each, Mapping) and not _OF_A_ROW & set(each) for each in rows):
        return [document]
    return [each["row"] if isinstance(each.get("row"), Mapping) else each for each in rows]


def _is_row(value: object) -> bool:
    return isinstance(value, Mapping) and shape_of(Fields(value)) is not None


def _look(path: Path, digest: Any) -> tuple[_File, int]:
    """What a file is and how many rows it has; its bytes go into ``digest``."""
    with path.open("rb") as raw:
        head = raw.read(6)
        raw.seek(0)
        while chunk := raw.read(_CHUNK):
            digest.update(chunk)
    if head.startswith(b"PAR1"):
        return _File(path=path, kind="parquet"), pq.ParquetFile(path).metadata.num_rows
    packed = next((name for mark, name in _PACKED.items() if head.startswith(mark)), None)
    file = _File(path=path, packed=packed)
    newlines, ended, start = 0, True, b""
    with file.bytes() as unpacked:
        while chunk := unpacked.read(_CHUNK):
            start = start or chunk
            newlines += chunk.count(b"\n")
            ended = chunk.endswith((b"\n", b"\n\x00"))
    archive = next((what for mark, what in _ARCHIVES.items() if head.startswith(mark)), "")
    if archive or start[257:262] == b"ustar":
        raise DatasetError(f"{path} is {archive or 'a tar archive'}: unpack it, and give the file or folder inside.")
    encoding = json.detect_encoding(start)
    rows = newlines + (not ended)
    table = any(ending in _TABLES for ending in path.suffixes)
    kind = "table" if table else _kind_of_json(start.decode(encoding, errors="replace"), rows)
    file = replace(file, encoding="utf-8-sig" if table and encoding == "utf-8" else encoding, kind=kind)
    if kind == "document" and any(isinstance(value, BadRow) for _, value in file.read()):
        # Lines of which the first is broken.
        return replace(file, kind="lines"), rows
    return file, rows if kind == "lines" else sum(1 for _ in file.read())


def _kind_of_json(start: str, rows: int) -> str:
    """``lines``, ``elements`` of one list, or one ``document``, by how a file begins."""
    lines = [line for line in start.lstrip("\ufeff").split("\n") if line.strip()]
    if not lines or lines[0].lstrip()[:1] not in ("[", "{"):
        return "lines"
    alone = len(lines) == 1 and rows <= 1 + start.count("\n")
    values = [_parsed(line.encode("utf-8", "surrogatepass")) for line in lines[:_FIRST_LINES]]
    if lines[0].lstrip().startswith("["):
        first = values[0]
        if isinstance(first, BadRow) or (alone and not _is_messages(first)):
            return "elements"
        return "lines"
    if alone and isinstance(values[0], Mapping):
        return "document"
    return "lines" if any(isinstance(value, Mapping) and value for value in values) or alone else "document"


def _is_messages(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(each, Mapping) and _OF_A_ROW & set(each) for each in value)


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        return _bad_json(error, raw[:40].decode(errors="replace"))


def _bad_json(error: Exception, start: str) -> BadRow:
    fault = f"{error.msg} at character {error.pos}" if isinstance(error, JSONDecodeError) else error
    return BadRow("not_json", f"{fault}; the line begins {show(start[:40].strip())}")


def _without_nulls(value: Any) -> Any:
    """A row of a table without the fields that other rows have and this one has not, which Arrow gives as null."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _is_log(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    return not hidden and path.suffix in _ENDINGS and path.name not in _BESIDE and not is_empty(path.stat().st_size)


def _fetched(name: str) -> Path:
    """The files of a data set on the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = [f"*{ending}" for ending in sorted(_ENDINGS)]
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise DatasetError(
            f"{name} is no file here, and can't be fetched as a data set of the hub: {reason}. "
            "Give a file, a folder, or a hub id like owner/name."
        ) from error


def _unreadable(path: Path, error: Exception) -> DatasetError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DatasetError(
        f"{path} can't be read: {reason.rstrip('.')}. Give JSON Lines, JSON, CSV or Parquet, as it is or packed with "
        "gzip or zstd, and whole."
    )
