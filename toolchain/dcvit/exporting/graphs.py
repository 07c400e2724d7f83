"""Reading ONNX files as files that anybody may have written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx import ModelProto

from dcvit.errors import DcvitError, InputError, first_line
from dcvit.exporting.storage import load_graph


def read_graph(path: Path) -> ModelProto:
    """An ONNX file, without the weights that are beside it.

    Raises:
        InputError: If it is none.
    """
    with reading_graph(path):
        return load_graph(path)


@contextmanager
def reading_graph(path: Path) -> Iterator[None]:
    """Around what goes through an ONNX file's graph: what no file of ours can cause is the file's fault.

    Raises:
        InputError: For whatever onnx, its shape inference or the walk over its nodes raise.
    """
    try:
        yield
    except (DcvitError, OSError):
        raise
    except Exception as error:  # onnx's errors share no base of their own
        raise InputError(f"{path} is no ONNX file of ours ({first_line(error)}); export it again") from error
