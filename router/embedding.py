"""Text to vectors, with sentence-transformers: the only file that imports it, and only when the first text comes.

One worker thread embeds for the whole process, so that the event loop never waits for a model. What waits is embedded
together: queries before documents, of one model at a time, in batches small enough that a query behind a batch of
documents waits a fraction of a second. Texts that several callers ask for at the same time are embedded once, and those
that nobody waits for any more are not embedded at all.

The queue is bounded. A few models stay loaded; the least recently used one makes room. A model that could not be loaded is not
tried again for some seconds, since a failing hub lookup would hold up everybody else.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from router.validation import Matrix
from vectorfleet import errors

BATCH_TEXTS_MAX: Final = 32
BATCH_CHARS_MAX: Final = 16_384
QUEUED_TEXTS_MAX: Final = 20_000
MODELS_MAX: Final = 4
FAILURE_REMEMBERED_S: Final = 10.0

_log = logging.getLogger(__name__)


class Purpose(enum.Enum):
    """What a text is for: some models embed questions and documents differently, and questions come first."""

    QUERY = "query"
    DOCUMENT = "document"


@dataclass(slots=True, eq=False)
class _Job:
    """One text that somebody waits for."""

    model: str
    purpose: Purpose
    text: str
    vector: asyncio.Future[Matrix]
    waiters: int = 0


class Embedder:
    """Embeds texts in a thread of its own. Its methods belong to one event loop."""

    def __init__(self, *, threads: int = 0) -> None:
        """Makes an embedder; its thread starts with the first text.

        Args:
            threads: how many cores the model may use; 0: half of them.
        """
        self._threads = threads or max(1, (os.cpu_count() or 2) // 2)
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
            ResourceExhausted: OVERLOADED, too many texts wait already.
        """
        # By length, so that texts of a batch are alike: a model pads all of them to the longest.
        jobs = [self._enlist(model, purpose, text) for text in sorted(dict.fromkeys(texts), key=len)]
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

    async def close(self) -> None:
        """Stops the thread after its present batch; what still waits is refused."""
        with self._work:
            self._closing = True
            self._work.notify()
        for job in list(self._jobs.values()):
            self._settle(job, errors.Unavailable("the router is stopping", reason="SHUTTING_DOWN"))
        if self._worker is not None:
            await asyncio.to_thread(self._worker.join, 5.0)

    # On the event loop.

    def _enlist(self, model: str, purpose: Purpose, text: str) -> _Job:
        """The job of a text, a new one or the one that others wait for."""
        key = (model, purpose, text)
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job(model, purpose, text, asyncio.get_running_loop().create_future())
        job.waiters += 1
        return job

    def _admit(self, jobs: Sequence[_Job]) -> None:
        """Queues the jobs that are new."""
        new = [job for job in jobs if job.waiters == 1]
        with self._work:
            waiting = sum(len(queue) for queue in self._queues.values())
            if self._closing:
                raise errors.Unavailable("the router is stopping", reason="SHUTTING_DOWN")
            if waiting + len(new) > QUEUED_TEXTS_MAX:
                raise errors.ResourceExhausted(f"{waiting} texts wait to be embedded already")
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
            self._jobs.pop((job.model, job.purpose, job.text), None)
            job.vector.cancel()  # no effect once it is there

    def _settle(self, job: _Job, outcome: Matrix | Exception) -> None:
        if job.vector.done():
            return
        if isinstance(outcome, Exception):
            job.vector.set_exception(outcome)
            job.vector.exception()  # each waiter reads it; a job without waiters must not warn
        else:
            job.vector.set_result(outcome)

    # In the worker thread.

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        models = _Models(self._threads)
        while (batch := self._take()) is not None:
            try:
                outcomes: Sequence[Matrix | Exception] = models.encode(
                    batch[0].model, [job.text for job in batch], batch[0].purpose
                )
            except Exception as error:
                outcomes = [error] * len(batch)
            try:
                loop.call_soon_threadsafe(self._settle_all, batch, outcomes)
            except RuntimeError:
                return  # the loop is gone, and with it everybody who waited

    def _settle_all(self, batch: Sequence[_Job], outcomes: Sequence[Matrix | Exception]) -> None:
        for job, outcome in zip(batch, outcomes, strict=True):
            self._settle(job, outcome)

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


def _take_from(queue: deque[_Job]) -> list[_Job]:
    batch: list[_Job] = []
    chars = 0
    while queue and len(batch) < BATCH_TEXTS_MAX:
        job = queue[0]
        if batch and (job.model != batch[0].model or chars + len(job.text) > BATCH_CHARS_MAX):
            break
        queue.popleft()
        if not job.vector.done():  # done: nobody waits for it any more
            batch.append(job)
            chars += len(job.text)
    return batch


class _Models:
    """The loaded models; lives in the worker thread."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._loaded: OrderedDict[str, Any] = OrderedDict()
        self._failed: dict[str, tuple[float, errors.VectorfleetError]] = {}

    def encode(self, name: str, texts: Sequence[str], purpose: Purpose) -> list[Matrix]:
        """Returns one float32[dim] a text."""
        model = self._model(name)
        encode = model.encode_query if purpose is Purpose.QUERY else model.encode_document
        vectors = encode(list(texts), batch_size=len(texts), convert_to_numpy=True, show_progress_bar=False)
        return list(np.ascontiguousarray(vectors, np.float32))

    def _model(self, name: str) -> Any:
        failed_s, error = self._failed.get(name, (0.0, None))
        if error is not None and time.monotonic() - failed_s < FAILURE_REMEMBERED_S:
            raise error
        if name not in self._loaded:
            try:
                self._loaded[name] = self._load(name)
            except errors.VectorfleetError as failure:
                if len(self._failed) > 100:
                    self._failed.clear()
                self._failed[name] = (time.monotonic(), failure)
                raise
            if len(self._loaded) > MODELS_MAX:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _load(self, name: str) -> Any:
        begin_s = time.monotonic()
        path = os.path.expanduser(name)
        if name.startswith(("/", "./", "../", "~")) and not os.path.isdir(path):
            raise _unavailable(name, "there is no such folder on the router's machine")
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
            model = sentence_transformers.SentenceTransformer(path)
        except Exception as error:  # whatever a hub, a file system or a model's code may raise
            raise _unavailable(name, f"{type(error).__name__}: {error}") from error
        _log.info("loaded embedding model %s in %.1f s", name, time.monotonic() - begin_s)
        return model


def _unavailable(name: str, why: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        f"the embedding model {name!r} cannot be loaded: {why[:500]}", reason="EMBEDDING_MODEL_UNAVAILABLE"
    )
