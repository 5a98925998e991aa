"""Arrays as records: each row is one payload, with its bytes as in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pmwal.errors import RecordTooLarge
from pmwal.format.layout import Superblock
from pmwal.format.payload import check_length

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COUNT_MAX = (1 << 32) - 1
"""Records in one batch: the header counts them in 32 bits."""


class Rows(NamedTuple):
    """``records`` payloads of ``length`` bytes each, one after another in ``data``."""

    data: memoryview
    records: int
    length: int

    def payloads(self) -> list[bytes]:
        """Private copies of all of them."""
        data, length = self.data.tobytes(), self.length
        return [data[row * length : (row + 1) * length] for row in range(self.records)]


def as_rows(array: Any, block: Superblock) -> Rows:
    """The rows of a 2-D array, or the items of a 1-D one of structured dtype. An array that is not contiguous is copied."""
    from pmwal.format.numerics import np  # noqa: PLC0415 - loaded by those who use arrays

    if not isinstance(array, np.ndarray):
        raise TypeError(f"extend_array takes a numpy array, not {type(array).__name__}; for other items there is extend()")
    _refuse_objects(array.dtype)
    if array.ndim == 1 and array.dtype.kind != "V":
        raise ValueError(
            f"an array of {array.dtype} with one dimension could be one record or many: "
            "pass a[:, None] for a record of each item, or a[None, :] for one record of all"
        )
    if array.ndim not in (1, 2):
        raise ValueError(f"an array with {array.ndim} dimensions has no rows; make it two: a.reshape(len(a), -1)")
    count, length = len(array), array.dtype.itemsize * (array.shape[1] if array.ndim == 2 else 1)
    check_length(length, block)
    if count > COUNT_MAX:
        raise RecordTooLarge(f"{count} rows are more than one batch can have, which is {COUNT_MAX}; store them in pieces")
    data = np.ascontiguousarray(array).reshape(-1)
    return Rows((data.view(np.uint8) if data.nbytes else np.empty(0, np.uint8)).data, count, length)


def empty_rows(count: int, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], memoryview]:
    """A new array of ``count`` items, and its bytes."""
    from pmwal.format.numerics import np  # noqa: PLC0415 - loaded by those who use arrays

    data = np.empty(count * dtype.itemsize, np.uint8)
    return np.ndarray((count,), dtype, data), data.data


def given_rows(out: Any, count: int, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], memoryview]:
    """The first ``count`` items of ``out``, and their bytes."""
    from pmwal.format.numerics import np  # noqa: PLC0415 - loaded by those who use arrays

    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is a numpy array, not {type(out).__name__}")
    if out.ndim == 0 or (out.dtype, out.shape[1:]) != (dtype.base, dtype.shape):
        raise ValueError(f"out has items of {out.dtype} and shape {out.shape}, and not of {dtype}")
    if len(out) < count:
        raise ValueError(f"out has room for {len(out)} of {count} records")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out is read-only or not contiguous")
    front = out[:count]
    return front, (front.reshape(-1).view(np.uint8) if front.nbytes else np.empty(0, np.uint8)).data


def as_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype, if its items are plain bytes of a known length; otherwise ``TypeError``."""
    from pmwal.format.numerics import np  # noqa: PLC0415 - loaded by those who use arrays

    found = np.dtype(dtype)
    _refuse_objects(found)
    if found.itemsize == 0 and found.kind in "SU":
        raise TypeError(f"{dtype!r} does not say how long its items are; write S16, for example")
    return found


def _refuse_objects(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise TypeError(f"items of {dtype} are Python objects, which have no bytes to store; use a dtype of plain values")
