"""Patience with faults that pass by themselves: the only layer that tries a store's operation again.

Several layers of retries would multiply, and nobody would see how often or for how long they try. Here every retry
waits for a random time (so that a thousand workers do not return at once), is logged and reported to
`retry_observers`, and the last one comes after `PATIENCE_S`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from dgn.errors import StoreError, Truncated

if TYPE_CHECKING:
    from tenacity import RetryCallState

log = logging.getLogger("dgn")

PATIENCE_S = 300.0  # from the first try of an operation to its last
CHECK_PATIENCE_S = 5.0  # the same at the start of a command, when a person waits and a setting may be wrong
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 20.0  # each wait is drawn between 0 and a limit that doubles from the first to this

retry_observers: list[Callable[[str, BaseException], None]] = []  # called with each retry's operation and error

Args = ParamSpec("Args")
Result = TypeVar("Result")
AnyStore = TypeVar("AnyStore", bound="PatientStore")
Method = Callable[Concatenate[AnyStore, str, Args], Result]  # a store's method, whose first argument is the key


class PatientStore:
    """What the stores share: patience with faults that pass by themselves, and one line for all others."""

    url: str
    foreign: tuple[type[Exception], ...]
    patience_s: float | None = None  # None: PATIENCE_S

    def impatient(self) -> Self:
        """The same store for the start of a command."""
        hurried = copy.copy(self)
        hurried.patience_s = CHECK_PATIENCE_S
        return hurried

    def passes(self, error: BaseException) -> bool:
        """Whether a fault passes by itself."""
        raise NotImplementedError

    def remark(self) -> str:
        """What a person should know about the store."""
        return ""

    def hint(self, error: BaseException | None) -> str:
        """Ends the message about a fault: what to look at."""
        return ""

    def text(self, error: BaseException | None) -> str:
        """A fault on one line."""
        return " ".join(str(error).split())

    def check_length(self, key: str, data: bytes, start: int, stop: int) -> bytes:
        """The data of a range. Raises: Truncated if it is not all there."""
        if len(data) != stop - start:
            raise Truncated(f"{self.url}/{key} ends before byte {stop}: it is not what was written")
        return data

    def in_one_line(self, error: BaseException) -> StoreError:
        """A fault that does not pass, as an error for people."""
        return StoreError(f"cannot use {self.url}: {self.text(error)}{self.hint(error)}")


def patient(operation: str) -> Callable[[Method[AnyStore, Args, Result]], Method[AnyStore, Args, Result]]:
    """Makes a method try again what passes by itself.

    Faults that do not pass, or last too long, become a StoreError. A missing key stays a FileNotFoundError.

    Args:
        operation: what it is called in logs, metrics and messages.
    """

    def decorate(method: Method[AnyStore, Args, Result]) -> Method[AnyStore, Args, Result]:
        @wraps(method)
        def persist(self: AnyStore, key: str, /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
            try:
                return method(self, key, *args, **kwargs)
            except FileNotFoundError:
                raise
            except self.foreign as error:
                first = [error]

            def again() -> Result:
                if first:  # the fault that is known, so that only what fails pays for counting tries
                    raise first.pop()
                return method(self, key, *args, **kwargs)

            # Imported at the first fault: with Tornado, where that is installed, it is a tenth of a short command.
            from tenacity import RetryError, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

            retrying = Retrying(
                retry=retry_if_exception(self.passes),
                wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
                stop=stop_before_delay(PATIENCE_S if self.patience_s is None else self.patience_s),
                before_sleep=partial(_report, self, f"{self.url}/{key}", operation),
            )
            try:
                return retrying(again)
            except FileNotFoundError:
                raise
            except RetryError as error:
                last, seconds = error.last_attempt, retrying.statistics["delay_since_first_attempt"]
                tried = f"{operation} {key}".rstrip() + f" failed {last.attempt_number} times in {seconds:.0f} s"
                cause = last.exception()
                what = f"{tried}, at last: {self.text(cause)}{self.hint(cause)}"
                raise StoreError(f"cannot use {self.url}: {what}") from cause
            except self.foreign as error:
                raise self.in_one_line(error) from error

        return persist

    return decorate


def _report(store: PatientStore, where: str, operation: str, state: RetryCallState) -> None:
    error = state.outcome and state.outcome.exception()
    assert error
    log.warning("%s %s: %s; next try in %.1f s", operation, where, store.text(error), state.upcoming_sleep)
    for observer in retry_observers:
        observer(operation, error)
