"""Which failures Ray starts a run again after: those that may be over by then, not a user's mistake."""

import logging
import pickle
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError
from ray.train import FailureConfig
from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.callback_manager import CallbackManager
from ray.train.v2._internal.execution.failure_handling import create_failure_policy
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from stssl.base.errors import ConfigError, DataError, RunError, UnreachableError
from stssl.training.launch import _hide_reports, _not_again, _reason


def decided(failures):
    """What Ray does after these failures of workers, and the error that it hands on then."""
    status = SimpleNamespace(errors=failures)
    error = WorkerGroupError("failed", failures)
    try:
        manager = CallbackManager([UserCallbackHandler([_not_again()], None)])
        manager.invoke("after_worker_group_poll_status", status)
    except ControllerError as ended:
        error = ended
    decision = create_failure_policy(FailureConfig(max_failures=3)).make_decision(error)
    return decision.value, pickle.loads(pickle.dumps(error))


def wrapped(error):
    return UserExceptionWithTraceback(error, traceback_str="Traceback ...")


@pytest.mark.parametrize("kind", [ConfigError, DataError, RunError])
@pytest.mark.parametrize("others", [[], [RuntimeError("Connection closed by peer")]])
def test_a_users_mistake_ends_the_run_at_once_with_its_words(kind, others):
    failures = dict(enumerate([*others, wrapped(kind("no best checkpoint"))]))
    decision, error = decided(failures)
    assert decision == "RAISE" and type(_reason(error)) is kind and str(_reason(error)) == "no best checkpoint"


@pytest.mark.parametrize(
    "failures",
    [
        [RuntimeError("CUDA error: uncorrectable ECC error encountered")],
        [RayActorError()],
        [wrapped(RunError("storage is gone")), RayActorError()],
        [wrapped(UnreachableError("s3://bucket: it does not answer"))],
    ],
    ids=["a fault", "a dead worker", "what follows from a dead worker", "a server that is silent"],
)
def test_what_may_be_over_is_tried_again(failures):
    assert decided(dict(enumerate(failures)))[0] == "RETRY"


def test_ray_logs_no_dictionary_for_each_report(monkeypatch):
    monkeypatch.setattr(logging.root, "level", logging.INFO)  # as in Ray's workers
    monkeypatch.setattr(context.logger, "level", logging.NOTSET)
    context.logger.manager._clear_cache()
    assert context.logger.isEnabledFor(logging.INFO)  # control
    _hide_reports()
    assert not context.logger.isEnabledFor(logging.INFO) and context.logger.isEnabledFor(logging.WARNING)
