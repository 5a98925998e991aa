"""Opening a log to write it: create it, or take it over and recover it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pmwal.native import native
from pmwal.opening.files import Made, lock_log, map_for_writing
from pmwal.opening.options import Options
from pmwal.opening.takeover import take_over
from pmwal.records import Progress
from pmwal.storage.create import remove_file
from pmwal.storage.positions import check_links
from pmwal.storage.seam import Seam
from pmwal.writing.checks import checked
from pmwal.writing.engine import Engine
from pmwal.writing.wal import Wal

if native is not None:
    from pmwal.writing.native_engine import NativeEngine, NativeWal


def open_writer(
    name: str,
    options: Options,
    seam: Seam,
    progress: Progress | None,
    *,
    is_native: bool,
    made: Made | None,
) -> Wal:
    """The log with these options, locked for writing; ``is_native``: with the engine in C; ``made``: see ``open_with``."""
    engine_type: type[Engine] = checked(NativeEngine if is_native else Engine)
    wal_type: Callable[..., Wal] = NativeWal if is_native else Wal
    lock, created = lock_log(name, options, seam, progress) if made is None else (made.lock, True)
    judgement = None if made is None else made.judgement
    try:
        mapping, identity = map_for_writing(
            lock,
            name,
            options,
            seam,
            by_lines=is_native,
            created=created,
            identity=None if judgement is None else judgement.identity,
        )
        try:
            if options.counts_consumers:
                check_links(mapping.fd, name)
            pipelined = options.pipelined_on(mapping.medium)
            engine, report = take_over(
                mapping, identity, name, seam, pipelined, progress, engine_type, lock.announce, created=created, made=judgement
            )
            if created:
                report = replace(report, outcome="created")
            return wal_type(
                name,
                engine,
                lock,
                report,
                commit=options.commit,
                on_full=options.on_full,
                timeout=options.timeout,
                on_unlinked=options.on_unlinked,
                consumers=options.required_consumers,
            )
        except BaseException:
            mapping.close()
            raise
    except BaseException:
        if created:
            remove_file(name, lock, seam)
        lock.release()
        raise
