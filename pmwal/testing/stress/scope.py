"""What a run in a place can prove, and what it cannot: said before it starts, and in its report."""

from __future__ import annotations

from collections.abc import Sequence

from pmwal.testing.machine import Site

KILLS = (
    "It kills processes, not the kernel: it shows what survives the death of a process, with threads, readers, policies, full "
    "rings and recoveries, and whether memory, descriptors or threads leak."
)
NO_POWER_CUT = (
    "It cuts no power: the page cache survives each kill, so a flush that is missing or that the device ignores is not seen."
)
_MEMORY = (
    "On {filesystem} nothing survives a power cut: the durability of commits cannot be tested here, only their order and content."
)
_DAX = (
    "Commits end with cache flushes and a fence on a MAP_SYNC mapping (DAX), which a power cut would test: the platform must bring "
    "what left the caches to the medium (ADR)."
)
_VOLATILE = (
    "The device says that its write cache is volatile (write back), so each commit needs a flush{fua}. The run counts the flushes "
    "for each commit; whether the device honours them, only a power cut shows."
)
_STABLE = (
    "The device says that it has no volatile write cache (write through), so the kernel sends it no flush. Whether that is true, "
    "only a power cut shows."
)
_UNKNOWN = (
    "Nothing below {filesystem} says whether it has a volatile write cache; the report's barriers are those that pmwal asked for."
)
_WEAK = {
    "process": "pmwal promises that commits survive the death of the process here, not a power cut (stats().durability).",
    "unknown": "pmwal does not know whether commits survive a power cut here (stats().durability): it depends on the file server.",
}


def scope(site: Site, media: Sequence[str], durability: Sequence[str]) -> tuple[str, ...]:
    """Sentences about runs in this place with logs on these media, of which ``stats()`` reports these kinds of durability."""
    said = [KILLS]
    if "dax" in media:
        said += [NO_POWER_CUT, _DAX]
    if site.in_memory:
        said.append(_MEMORY.format(filesystem=site.mount.filesystem))
    elif "file" in media:
        said += [] if NO_POWER_CUT in said else [NO_POWER_CUT]
        if site.disk is None or site.disk.write_cache == "unknown":
            said.append(_UNKNOWN.format(filesystem=site.mount.filesystem))
        elif site.disk.write_cache == "write back":
            said.append(_VOLATILE.format(fua=", or a FUA write" if site.disk.fua == "yes" else " (it has no FUA)"))
        else:
            said.append(_STABLE)
        said += [_WEAK[kind] for kind in dict.fromkeys(durability) if kind in _WEAK]
    return tuple(said)
