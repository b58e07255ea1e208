"""Data sets of the Hugging Face hub, streamed; also folders that `datasets` reads. Needs the extra `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError, ResourceError, first_line
from circuit_tracer.hub_connection import ask_hub, why_offline
from circuit_tracer.text.documents import Cursor, Documents, missing_extra
from circuit_tracer.text.json_lines import text_of


class HubDataset(Documents):
    """One column of a split, read as it streams. A cursor is what `IterableDataset.state_dict` says."""

    def __init__(self, path: str, name: str | None, split: str, field: str) -> None:
        self.path, self.name, self.split, self.field = path, name, split, field
        self._open()

    def fingerprint(self) -> dict[str, Any]:
        """Path, configuration and split."""
        return {"path": self.path, "name": self.name, "split": self.split}

    def read(self, cursor: Cursor) -> Iterator[tuple[str, Cursor]]:
        """Raises InputError for a missing column, FileFormatError for a cursor of something else, ResourceError when the
        stream breaks off.
        """
        stream = self._open()
        if cursor is not None:
            try:
                stream.load_state_dict(cursor)
            except Exception as error:  # whatever the library raises about values that it has not written
                raise FileFormatError(
                    f"the saved position in data set {self.path!r} cannot be used: {first_line(error)}. Resume with the "
                    "version of `datasets` that the run began with, or start it anew."
                ) from error
        entries = iter(stream)
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                return
            except Exception as error:  # network, decoding: whatever the libraries below raise
                raise ResourceError(
                    f"reading data set {self.path!r} broke off: {first_line(error)} "
                    "Checkpoints keep the place: try again and resume the run."
                ) from error
            yield text_of(entry, self.field, f"data set {self.path!r}, split {self.split!r}"), stream.state_dict()

    def _open(self) -> Any:
        self._require_hub()
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise missing_extra("data sets of the hub", error) from error
        try:
            if (Path(self.path).expanduser() / "dataset_info.json").is_file() or self._is_saved_dict():
                return self._open_saved()
            return load_dataset(self.path, self.name, split=self.split, streaming=True)
        except (ValueError, OSError) as error:
            raise InputError(
                f"data set {self.path!r} (data.name {self.name!r}, data.split {self.split!r}) cannot be opened: "
                f"{first_line(error)} Give an id of the hub (with network access or a filled cache) or a folder, "
                "with one of its configurations and splits."
            ) from error

    def _require_hub(self) -> None:
        """InputError where the hub does not answer: a stream is read from there, and the library asks it for minutes."""
        if not Path(self.path).expanduser().exists() and not ask_hub():
            raise InputError(
                f"data set {self.path!r} cannot be opened: {why_offline()}. Connect, or give files of your own: data.kind "
                "jsonl, text, parquet or tokens, and their data.path."
            )

    def _is_saved_dict(self) -> bool:
        return (Path(self.path).expanduser() / "dataset_dict.json").is_file()

    def _open_saved(self) -> Any:
        """What `save_to_disk` wrote: one split, or several by name."""
        from datasets import load_from_disk

        location = Path(self.path).expanduser()
        return load_from_disk(str(location / self.split if self._is_saved_dict() else location)).to_iterable_dataset()
