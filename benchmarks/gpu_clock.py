"""Clocks of `gpu.py`: device time in a CUDA graph, host time, interleaved times; and one that needs no GPU."""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]
REPEATS = 20  # of a kernel in one graph, so that a replay takes longer than its launch
ROUNDS = 30


class Clock:
    """Times on the current CUDA device."""

    device = "cuda"

    def graph(self, call: Call, repeats: int = 1) -> Call:
        """A replay of `repeats` calls in one CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            for _ in range(repeats):
                call()
        return captured.replay

    def device_us(self, call: Call) -> float:
        """Device time of one call, without its host time: the median of replays of a graph of many, in us."""
        replay = self.graph(call, REPEATS)
        return self.interleaved({"call": replay})["call"] * 1e3 / REPEATS

    def host_us(self, call: Call) -> float:
        """Time until a call returns, nothing being waited for: the median in us."""
        call()
        times = []
        for number in range(200):
            if number % 20 == 0:
                torch.cuda.synchronize()
            start = time.perf_counter_ns()
            call()
            times.append((time.perf_counter_ns() - start) / 1e3)
        torch.cuda.synchronize()
        return statistics.median(times)

    def interleaved(self, calls: dict[str, Call]) -> dict[str, float]:
        """Median ms of each, all of them once in every round, in an order drawn for it."""
        for call in calls.values():
            for _ in range(3):
                call()
        torch.cuda.synchronize()
        order, times = list(calls), {name: [] for name in calls}  # type: dict[str, list[float]]
        draw = random.Random(0)
        for _ in range(ROUNDS):
            draw.shuffle(order)
            for name in order:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                calls[name]()
                end.record()
                end.synchronize()
                times[name].append(start.elapsed_time(end))
        return {name: statistics.median(values) for name, values in times.items()}


class NoClock(Clock):
    """Runs every call once, on the CPU, and says that it took one unit."""

    device = "cpu"

    def graph(self, call: Call, repeats: int = 1) -> Call:  # noqa: ARG002
        """The call itself."""
        return call

    def device_us(self, call: Call) -> float:
        """One."""
        call()
        return 1.0

    host_us = device_us

    def interleaved(self, calls: dict[str, Call]) -> dict[str, float]:
        """One each."""
        for call in calls.values():
            call()
        return dict.fromkeys(calls, 1.0)
