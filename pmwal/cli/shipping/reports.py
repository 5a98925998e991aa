"""What ``ship`` prints: how far it is, and what is wrong.

Invariants
----------
- Each thing that is wrong is said once, however often it is met, and for several logs at a time; so is its end.
- The line on a terminal is on standard error. It is taken away before anything else is printed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping

from pmwal.cli.hints import for_command_line
from pmwal.cli.terminal import print_json, say
from pmwal.cli.wording import count_in_words
from pmwal.errors import ShipError
from pmwal.opening.units import format_size
from pmwal.ship import Progress
from pmwal.ship.otlp import OtlpProgress


def lost(progress: Progress | OtlpProgress) -> bool:
    """Whether records were not shipped, and will not be."""
    return progress.gaps > 0 or (isinstance(progress, OtlpProgress) and progress.rejected > 0)


class Reports:
    """Prints how far logs are shipped."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._shown: dict[str, tuple[int, int]] = {}  # what was acknowledged when a log was printed, by path
        self._lost: dict[str, OtlpProgress] = {}  # when it was last said what was lost, by path
        self._wrong: dict[str, str] = {}  # what is wrong at the moment, by path
        self._line = False
        self._terminal = not json and sys.stderr.isatty()

    def tell(self, message: str) -> None:
        """Print a message to standard error."""
        self._take_line_away()
        say(for_command_line(ShipError(), message))

    def show(self, progress: Mapping[str, Progress] | Mapping[str, OtlpProgress]) -> None:
        """Print how far it is by now: objects for logs that got further, or a line on a terminal that is written over."""
        self._tell_losses(progress)
        if self._json:
            for path, each in progress.items():
                if _is_known(each) and self._shown.get(path) != _reached(each):
                    self._print(path, each)
        elif self._terminal:
            records = sum(each.records for each in progress.values())
            size = sum(each.bytes for each in progress.values())
            behind = sum(each.lag_records for each in progress.values())
            age = max((each.lag_seconds for each in progress.values()), default=0.0)
            one = any(isinstance(each, OtlpProgress) for each in progress.values())  # for all logs, however many they are
            logs = "" if one else f"{count_in_words(len(progress), 'log')}: "
            line = f"{logs}{count_in_words(records, 'record')}, {format_size(size)} shipped; {behind:,} behind, {age:.1f} s"
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            self._line = True

    def finish(self, progress: Mapping[str, Progress] | Mapping[str, OtlpProgress]) -> None:
        """Print how far each log was shipped in the end."""
        self._tell_losses(progress)
        self._take_line_away()
        for path, each in progress.items():
            if _is_known(each):
                self._print(path, each)

    def _tell_losses(self, progress: Mapping[str, Progress] | Mapping[str, OtlpProgress]) -> None:
        """Say what a collector did not get, or rejected, since the last call. Of a stream the shipper itself tells."""
        for path, each in progress.items():
            if isinstance(each, OtlpProgress):
                last = self._lost.get(path, OtlpProgress())
                self._lost[path] = each
                if each.gaps > last.gaps:
                    gone = count_in_words(each.gaps - last.gaps, "record")
                    self.tell(f"{path}: overwritten before they were shipped: {gone}")
                if each.rejected > last.rejected:
                    rejected = count_in_words(each.rejected - last.rejected, "record")
                    self.tell(f"{path}: the collector rejected {rejected}: {each.rejection or 'it did not say why'}")

    def _print(self, path: str, each: Progress | OtlpProgress) -> None:
        self._shown[path] = _reached(each)
        if self._json:
            print_json({"log": path} | each._asdict())
            sys.stdout.flush()  # somebody may be waiting for it
            return
        sent, unit = (each.requests, "request") if isinstance(each, OtlpProgress) else (each.frames, "message")
        known = [f"acknowledged up to record {each.acknowledged}"] if each.acknowledged else []
        if sent:
            known.append(f"{count_in_words(each.records, 'record')}, {format_size(each.bytes)} in {count_in_words(sent, unit)}")
        elif not each.lag_records:
            known.append("nothing new" if each.acknowledged else "nothing to ship")
        elif not each.acknowledged:
            known.append("nothing acknowledged")
        if each.lag_records:
            known.append(f"{each.lag_records:,} behind")
        print(f"{path}: {'; '.join(known)}")

    def complain(self, problems: Mapping[str, Exception | str]) -> None:
        """Say what is wrong that is not said yet, and what is not wrong any more. The shipper tells of exceptions itself."""
        wrong = {path: problem for path, problem in problems.items() if isinstance(problem, str)}
        self._say_each({path: text for path, text in wrong.items() if self._wrong.get(path) != text}, "{}; trying again")
        ended = self._wrong.keys() - problems.keys()
        self._say_each(dict.fromkeys(sorted(ended), "shipped again"), "{}")
        self._wrong = wrong

    def _say_each(self, texts: Mapping[str, str], form: str) -> None:
        paths: defaultdict[str, list[str]] = defaultdict(list)
        for path, text in texts.items():
            paths[text].append(path)
        for text, found in paths.items():
            who = found[0] if len(found) == 1 else f"{len(found)} logs"
            self.tell(form.format(text if text.startswith(f"{who}: ") else f"{who}: {text}"))

    def _take_line_away(self) -> None:
        if self._line:
            self._line = False
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _is_known(each: Progress | OtlpProgress) -> bool:
    """Whether it is known where the stream is; a collector is not asked."""
    return isinstance(each, OtlpProgress) or each.next_seq > 0


def _reached(each: Progress | OtlpProgress) -> tuple[int, int]:
    """What changes when a log got further; several logs that are shipped as one have no number."""
    return each.acknowledged, each.records if isinstance(each, OtlpProgress) else 0
