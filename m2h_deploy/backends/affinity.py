"""Processors that an engine's threads stay on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from m2h_deploy.backends import MAX_THREADS
from m2h_deploy.bundle.manifest import Bundle
from m2h_deploy.errors import M2HError


@contextmanager
def threads_where_asked(bundle: Bundle) -> Iterator[None]:
    """Threads that start meanwhile stay on the processors of the bundle's `affinity`, if it has one.

    A thread inherits the affinity of the one that starts it, whatever engine it belongs to. The caller's own, which
    takes its share of each product, is as before afterwards. Raises M2HError when this process may not use one of them.
    """
    processors = bundle.manifest.engine.options.get("affinity")
    if not processors:
        yield
        return
    if not isinstance(processors, list) or not all(type(number) is int for number in processors):
        raise M2HError(f"{bundle.path}: engine.options.affinity is not a list of processor numbers")
    before = os.sched_getaffinity(0)
    if not before.issuperset(processors):
        raise M2HError(
            f"{bundle.path} asks for the processors {_words(processors)}, and this process may use "
            f"{_words(sorted(before))}: build it with another --affinity"
        )
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def parse_processors(text: str) -> tuple[int, ...]:
    """`0,2-3` to (0, 2, 3), as taskset writes them. Raises M2HError for anything else."""
    found: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            span = range(int(first), int(last or first) + 1)
            if not 0 < len(span) <= MAX_THREADS:
                raise ValueError
            found.update(span)
    except ValueError:
        found.clear()
    if not found or min(found) < 0:
        raise M2HError(f"affinity '{text}': give processors as 0,2-3")
    return tuple(sorted(found))


def _words(processors: Sequence[int]) -> str:
    return ", ".join(str(number) for number in processors)
