"""Pass requests from outside, to save a checkpoint or to end the run, on to all ranks (training processes).

A signal, a stopped job or a node that will be taken away is known to one process only. `Notices` tells all ranks at the
same step. If one rank left the loop by itself, the others would wait for its gradients forever.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from stssl.base.distributed import rank, world_size
from stssl.training.runtime import StopRequest

_ASK, _STOP = 1, 100
"""Numbers that ranks exchange: 0 is nothing, 1 asks for leaving nodes, 100 + N is signal N, which ends the run."""


class Outside:
    """Define how a run receives requests from other processes. This base class receives none."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Return a context in which rank 0 receives requests from other processes. It lasts as long as training."""
        yield

    def asked(self) -> signal.Signals | None:
        """Return the signal that asked the run to end, as rank 0 knows it; None if there was none."""
        return None

    def due(self) -> bool:
        """Return True if it is time for rank 0 to ask all ranks to check together if a node will be taken away."""
        return False

    def node_leaves(self) -> bool:
        """Return True if a node of this run will soon be taken away. All ranks call this together."""
        return False


class Notice(NamedTuple):
    """Say what all ranks must do after a step.

    Attributes:
        save: True to write a checkpoint and continue.
        stop: Signal that asked the run to end; None to continue.
    """

    save: bool
    stop: signal.Signals | None


class Notices:
    """Exchange a number between all ranks after each step, so that all get the same request at the same step.

    The exchange runs during the next step, in a gloo group of its own, and its result is read after that step.
    Therefore, neither the host nor the device waits for it, and a request takes effect one step late. With only one
    rank, nothing is exchanged.
    """

    def __init__(self, stop: StopRequest, outside: Outside, timeout_s: int) -> None:
        """Connect the ranks (training processes), so that they can exchange requests. All ranks call this together.

        Args:
            stop: Recorder of signals to this process.
            outside: Receiver of requests from other processes.
            timeout_s: Seconds that a rank waits for the other ranks before it gives up.
        """
        self.stop, self.outside = stop, outside
        self._group: dist.ProcessGroup | None = None
        self._sent: tuple[Tensor, dist.Work] | None = None
        if world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            assert isinstance(group, dist.ProcessGroup)  # torch returns another type to ranks outside of the group
            self._group = group

    @contextmanager
    def listening(self) -> Iterator["Notices"]:
        """Return a context that records signals to this process and, on rank 0, requests from other processes.

        In the `with` statement, `as` gives this object.
        """
        with self.stop.listening():
            if rank():
                yield self
                return
            with self.outside.listening():
                yield self

    def after_step(self) -> Notice:
        """Return what all ranks must do now: save, end, or nothing. All ranks call this once after each step."""
        number = self._own()
        if self._group is not None:
            sent, number = torch.tensor([number]), self._received()
            work = dist.all_reduce(sent, dist.ReduceOp.MAX, group=self._group, async_op=True)
            assert work is not None  # for type checkers: torch returns None only to ranks outside of the group
            self._sent = sent, work
        if number >= _STOP:
            return Notice(False, signal.Signals(number - _STOP))
        return Notice(number == _ASK and self.outside.node_leaves(), None)

    def _own(self) -> int:
        """Return the request that this rank received, as the number that it sends to the other ranks.

        It is 0 for no request, 1 to check together if a node will be taken away, and 100 + N for signal number N.
        """
        by = self.stop.by or (self.outside.asked() if rank() == 0 else None)
        if by is not None:
            return _STOP + by
        return _ASK if rank() == 0 and self.outside.due() else 0

    def _received(self) -> int:
        """Wait for the last exchange. Return the largest number that a rank sent in it: the most urgent request.

        Return 0 if no exchange is under way.
        """
        if self._sent is None:
            return 0
        (number, work), self._sent = self._sent, None
        work.wait()
        return int(number)

    def meet(self) -> None:
        """Wait until all ranks have called this method."""
        self._received()
        if self._group is not None:
            dist.barrier(group=self._group)

    def close(self) -> None:
        """End the connection of the ranks (training processes). All ranks call this together, after their last step."""
        self._received()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
