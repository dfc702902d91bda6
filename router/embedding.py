"""Text to vectors, with sentence-transformers: the only file that imports it, and only when the first text comes.

One worker thread embeds for the whole process, so that the event loop never waits for a model. What waits is embedded
together: queries before documents, of one model at a time, in batches small enough that a query behind a batch of
documents waits a fraction of a second. Texts that several callers ask for at the same time are embedded once, and those
that nobody waits for any more are not embedded at all. The queue is bounded.

Models are loaded in threads of their own, since a hub that cannot be reached is tried for more than a minute. A few stay
loaded; the least recently used one makes room. A failure is remembered for some seconds.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from router.validation import Matrix
from vectorfleet import errors

BATCH_TEXTS_MAX: Final = 32
BATCH_CHARS_MAX: Final = 2048
"""About ten passages: larger batches embed no faster on a CPU, and queries wait behind them."""
QUEUED_TEXTS_MAX: Final = 20_000
MODELS_MAX: Final = 4
LOADS_MAX: Final = 8
"""Models that are loaded at once."""
FAILURE_REMEMBERED_S: Final = 10.0

_log = logging.getLogger(__name__)


class Purpose(enum.Enum):
    """What a text is for: some models embed questions and documents differently, and questions come first."""

    QUERY = "query"
    DOCUMENT = "document"


@dataclass(slots=True, eq=False)
class _Job:
    """One text that somebody waits for."""

    key: tuple[str, Purpose, str]
    model: Any
    vector: asyncio.Future[Matrix]
    waiters: int = 0

    @property
    def purpose(self) -> Purpose:
        return self.key[1]

    @property
    def text(self) -> str:
        return self.key[2]


class Embedder:
    """Embeds texts in a thread of its own. Its methods belong to one event loop."""

    def __init__(self, *, threads: int = 0) -> None:
        """Makes an embedder; its thread starts with the first text.

        Args:
            threads: how many cores the model may use; 0: half of them.
        """
        self._models = _Models(threads or max(1, (os.cpu_count() or 2) // 2))
        self._jobs: dict[tuple[str, Purpose, str], _Job] = {}
        self._queues: dict[Purpose, deque[_Job]] = {Purpose.QUERY: deque(), Purpose.DOCUMENT: deque()}
        self._work = threading.Condition()
        self._closing = False
        self._worker: threading.Thread | None = None

    async def dimension(self, model: str) -> int:
        """Returns how many components a model's vectors have; loads the model. Raises what `embed` does."""
        return int((await self.embed(model, ["How many dimensions?"], Purpose.QUERY)).shape[1])

    async def embed(self, model: str, texts: Sequence[str], purpose: Purpose) -> Matrix:
        """Returns the texts' vectors, float32[len(texts), dim].

        Args:
            model: a local path or a hub name.
            texts: one or more.
            purpose: whether they are questions or documents.

        Raises:
            FailedPrecondition: EMBEDDING_NOT_INSTALLED or EMBEDDING_MODEL_UNAVAILABLE.
            ResourceExhausted: OVERLOADED, too many texts or models wait already.
        """
        self._refuse_closing()
        loaded = await self._models.get(model)
        jobs = [self._enlist((model, purpose, text), loaded) for text in dict.fromkeys(texts)]
        try:
            self._admit(jobs)
            done, _ = await asyncio.wait([job.vector for job in jobs], return_when=asyncio.FIRST_EXCEPTION)
            for vector in done:
                vector.result()  # raises where one failed
            of_text = {job.text: job.vector.result() for job in jobs}
        finally:
            for job in jobs:
                self._release(job)
        return np.stack([of_text[text] for text in texts])

    @property
    def waiting(self) -> int:
        """Texts that wait."""
        return sum(len(queue) for queue in self._queues.values())

    async def close(self) -> None:
        """Stops the thread after its present batch; what still waits is refused."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._models.close()
        for job in list(self._jobs.values()):
            _settle(job.vector, _stopping())
        if self._worker is not None:
            await asyncio.to_thread(self._worker.join, 5.0)

    def _refuse_closing(self) -> None:
        if self._closing:
            raise _stopping()

    def _enlist(self, key: tuple[str, Purpose, str], model: Any) -> _Job:
        """The job of a text, a new one or the one that others wait for."""
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job(key, model, asyncio.get_running_loop().create_future())
        job.waiters += 1
        return job

    def _admit(self, jobs: Sequence[_Job]) -> None:
        """Queues the jobs that are new."""
        self._refuse_closing()
        new = [job for job in jobs if job.waiters == 1]
        with self._work:
            if self.waiting + len(new) > QUEUED_TEXTS_MAX:
                raise errors.ResourceExhausted(f"{self.waiting} texts wait to be embedded already")
            for job in new:
                self._queues[job.purpose].append(job)
            self._work.notify()
        if self._worker is None:
            loop = asyncio.get_running_loop()
            self._worker = threading.Thread(target=self._serve, args=(loop,), name="embedding", daemon=True)
            self._worker.start()

    def _release(self, job: _Job) -> None:
        """One caller less waits for a job; without any left it is forgotten."""
        job.waiters -= 1
        if job.waiters == 0:
            self._jobs.pop(job.key, None)
            job.vector.cancel()  # no effect once it is there

    # In the worker thread.

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        while (batch := self._take()) is not None:
            outcomes = _outcomes(batch[0].model, [job.text for job in batch], batch[0].purpose)
            try:
                loop.call_soon_threadsafe(_settle_all, [job.vector for job in batch], outcomes)
            except RuntimeError:
                return  # the loop is gone, and with it everybody who waited

    def _take(self) -> list[_Job] | None:
        """The next batch: one model, one purpose, queries first. None: the embedder closes."""
        with self._work:
            while not self._closing:
                for queue in self._queues.values():
                    batch = _take_from(queue)
                    if batch:
                        return batch
                self._work.wait()
        return None


class _Models:
    """The loaded models. Its methods belong to the event loop; only `load` runs in other threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._loaded: OrderedDict[str, Any] = OrderedDict()
        self._loading: dict[str, asyncio.Future[Any]] = {}
        self._failed: dict[str, tuple[float, Exception]] = {}

    async def get(self, name: str) -> Any:
        """Returns a model, loading it where it is not loaded; all who ask meanwhile wait for the same load."""
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        now_s = time.monotonic()
        self._failed = {n: entry for n, entry in self._failed.items() if now_s - entry[0] < FAILURE_REMEMBERED_S}
        if name in self._failed:
            raise copy(self._failed[name][1])  # an exception keeps every stack that it was ever raised through
        if name not in self._loading:
            if len(self._loading) >= LOADS_MAX:
                raise errors.ResourceExhausted(f"{len(self._loading)} embedding models are being loaded already")
            self._begin(name)
        return await asyncio.shield(self._loading[name])  # a caller that leaves does not end the load

    def close(self) -> None:
        """Refuses all that wait; threads that load end with the process."""
        for loading in self._loading.values():
            _settle(loading, _stopping())

    def load(self, name: str) -> Any:
        """Loads a model; blocks. Raises `FailedPrecondition`."""
        begin_s = time.monotonic()
        path = os.path.expanduser(name)
        if name.startswith(("/", "./", "../", "~")) and not os.path.isdir(path):
            raise _unavailable(name, "there is no such folder on the router's machine")
        # Read when torch loads OpenMP: threads that have no work sleep. Spinning, they would take the cores from the event loop
        # and from whatever else runs here, and on a busy machine two threads would be slower than one.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            import sentence_transformers
            import torch
        except ModuleNotFoundError as error:
            raise errors.FailedPrecondition(
                f"text needs sentence-transformers on the router ({error}): pip install 'vectorfleet[embed]'",
                reason="EMBEDDING_NOT_INSTALLED",
            ) from error
        except Exception as error:
            raise _unavailable(name, f"sentence-transformers does not start: {error}") from error
        torch.set_num_threads(self._threads)
        try:
            try:  # what is on this machine needs no hub, and does not change behind the collection's back
                model = sentence_transformers.SentenceTransformer(path, local_files_only=True)
            except Exception:
                if os.path.isdir(path):
                    raise
                model = sentence_transformers.SentenceTransformer(path)
        except Exception as error:  # whatever a hub, a file system or a model's code may raise
            raise _unavailable(name, f"{type(error).__name__}: {error}") from error
        _log.info("loaded embedding model %s in %.1f s", name, time.monotonic() - begin_s)
        return model

    def _begin(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        future = self._loading[name] = loop.create_future()
        future.add_done_callback(lambda done: self._end(name, done))

        def run() -> None:
            try:
                outcome = self.load(name)
            except Exception as error:
                outcome = error
            try:
                loop.call_soon_threadsafe(_settle, future, outcome)
            except RuntimeError:
                return  # the loop is gone

        threading.Thread(target=run, name=f"loading {name}"[:40], daemon=True).start()

    def _end(self, name: str, done: asyncio.Future[Any]) -> None:
        del self._loading[name]
        error = done.exception()
        if isinstance(error, Exception):
            self._failed[name] = time.monotonic(), error
            return
        self._loaded[name] = done.result()
        if len(self._loaded) > MODELS_MAX:
            self._loaded.popitem(last=False)


def _outcomes(model: Any, texts: list[str], purpose: Purpose) -> list[Matrix | Exception]:
    """What comes of each text. One that the model cannot take must not fail those of other callers beside it."""
    try:
        return [*_encode(model, texts, purpose)]
    except Exception as error:
        if len(texts) == 1:
            return [error]
        return [outcome for text in texts for outcome in _outcomes(model, [text], purpose)]


def _encode(model: Any, texts: list[str], purpose: Purpose) -> list[Matrix]:
    """Returns one float32[dim] a text."""
    encode: Callable[..., Any] = model.encode_query if purpose is Purpose.QUERY else model.encode_document
    vectors = encode(texts, batch_size=len(texts), convert_to_numpy=True, show_progress_bar=False)
    matrix = np.ascontiguousarray(vectors, np.float32)
    if matrix.ndim != 2 or len(matrix) != len(texts):
        raise ValueError(f"the embedding model gave an array of shape {matrix.shape} for {len(texts)} texts")
    return list(matrix)


def _take_from(queue: deque[_Job]) -> list[_Job]:
    batch: list[_Job] = []
    chars = 0
    while queue and len(batch) < BATCH_TEXTS_MAX:
        job = queue[0]
        if batch and (job.model is not batch[0].model or chars + len(job.text) > BATCH_CHARS_MAX):
            break
        queue.popleft()
        if not job.vector.done():  # done: nobody waits for it any more
            batch.append(job)
            chars += len(job.text)
    return batch


def _settle_all(futures: Sequence[asyncio.Future[Matrix]], outcomes: Sequence[Matrix | Exception]) -> None:
    for future, outcome in zip(futures, outcomes, strict=True):
        _settle(future, outcome)


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
        future.exception()  # each waiter reads it; one that nobody waits for must not warn
    else:
        future.set_result(outcome)


def _stopping() -> errors.Unavailable:
    return errors.Unavailable("the router is stopping", reason="SHUTTING_DOWN")


def _unavailable(name: str, why: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        f"the embedding model {name[:200]!r} cannot be loaded: {why[:500]}", reason="EMBEDDING_MODEL_UNAVAILABLE"
    )
