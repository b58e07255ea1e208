"""The diagnosis of a model's heads, of the file that `circuit-tracer heads -o heads.json` writes."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from circuit_tracer.errors import FileFormatError
from circuit_tracer.files import read_json
from circuit_tracer.viewer.server.head_messages import HeadTableFile
from circuit_tracer.viewer.server.problems import NotThere


def read_head_table(path: Path) -> HeadTableFile:
    """The table. Raises NotThere without one, FileFormatError for a file of something else."""
    if not path.is_file():
        raise NotThere(
            f"no diagnosis of heads here; write one with circuit-tracer heads -m MODEL -o {path.parent.name}/{path.name}, in "
            "the folder of graphs"
        )
    try:
        return HeadTableFile.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise FileFormatError(
            f"{path.name} is no diagnosis of heads ({'.'.join(map(str, first['loc']))}: {first['msg']}); write it with "
            "circuit-tracer heads -o"
        ) from error
