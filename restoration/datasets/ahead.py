"""Pictures decoded by another thread while those before them are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

Loaded = tuple[Tensor, Tensor]


class Ahead:
    """Calls `load` with the ids that are expected, one block ahead; any other is loaded when asked for.

    What `load` raises is raised where the picture is asked for, so that whoever does meets the same error at the same
    place. On leaving, what was expected and never asked for is dropped.
    """

    def __init__(self, load: Callable[[str], Loaded]) -> None:
        self.load = load
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._expected: dict[str, Future[Loaded]] = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def expect(self, image_ids: Sequence[str]) -> None:
        """These will be asked for after those of the last call, of which what was not asked for is kept until then."""
        for image_id in image_ids:
            self._expected[image_id] = self._pool.submit(self.load, image_id)

    def __call__(self, image_id: str) -> Loaded:
        coming = self._expected.pop(image_id, None)
        return self.load(image_id) if coming is None else coming.result()
