"""CUDA graphs: a forward pass recorded once and replayed, so that the host launches one thing and not a hundred.

A replay reads and writes the memory that the recorded pass did: what a session puts its images into must stay.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

from dcvit.errors import first_line

WARM_UP = 3
"""Passes before one is recorded: they choose kernels, compile them and allocate, which a graph cannot hold."""

log = logging.getLogger(__name__)


class GraphedPass:
    """A pass that is recorded when it first runs.

    Attributes:
        output: What the recorded pass returned; each replay writes it anew.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self._stream = torch.cuda.Stream()
        self._graph: Any = None
        self.output: Any = None

    def __call__(self) -> Any:
        """Records the pass or replays it; returns when it is finished."""
        if self._graph is None:
            self._record()
        with torch.cuda.stream(self._stream):
            self._graph.replay()
        self._stream.synchronize()
        return self.output

    def _record(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                self._run()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self.output = self._run()
        self._graph = graph


def record_if_possible(run: Callable[[Any], None], stream: Any, what: str) -> Any:
    """The graph of what `run` enqueues on a stream, which has run there before; None where it cannot be recorded.

    Args:
        run: Given the stream.
        stream: A torch stream.
        what: For the warning that says why there is none.
    """
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run(stream)
    except Exception as error:  # what a library enqueues is its own matter
        log.warning("%s runs without a CUDA graph: %s", what, first_line(error))
        return None
    return graph
