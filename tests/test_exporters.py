"""Objects that export a buffer: what they raise reaches the caller, what they contain is stored as it is or refused.

The exporter is a small extension module, because before Python 3.12 no class in Python can be one.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
from support import open_small, payloads

pytestmark = pytest.mark.both_engines

SOURCE = """
#include <Python.h>

typedef struct { PyObject_HEAD PyObject *get, *release; } Exporter;

static int get(Exporter *self, Py_buffer *view, int flags)
{
    view->obj = NULL;
    PyObject *bytes = PyObject_CallFunction(self->get, "i", flags);
    if (!bytes)
        return -1;
    int status = PyBuffer_FillInfo(view, (PyObject *)self, PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes), 1, flags);
    view->internal = bytes;
    return status;
}

static void release(Exporter *self, Py_buffer *view)
{
    PyObject *answer = PyObject_CallNoArgs(self->release);
    if (!answer)
        PyErr_WriteUnraisable((PyObject *)self);
    Py_XDECREF(answer);
    Py_XDECREF((PyObject *)view->internal);
}

static int init(Exporter *self, PyObject *args, PyObject *keywords)
{
    if (!PyArg_ParseTuple(args, "OO", &self->get, &self->release))
        return -1;
    Py_INCREF(self->get);
    Py_INCREF(self->release);
    return 0;
}

static PyType_Slot slots[] = {
    {Py_tp_init, init}, {Py_bf_getbuffer, get}, {Py_bf_releasebuffer, release}, {0},
};
static PyType_Spec spec = {"exporters.Exporter", sizeof(Exporter), 0, Py_TPFLAGS_DEFAULT, slots};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "exporters", NULL, -1};

PyMODINIT_FUNC PyInit_exporters(void)
{
    PyObject *made = PyModule_Create(&module);
    PyModule_AddObject(made, "Exporter", PyType_FromSpec(&spec));
    return made;
}
"""


def nothing() -> None:
    """What most exporters do when their buffer is released."""


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``exporter(get, release)``: an object whose buffer is what ``get(flags)`` returns."""
    gcc, include = shutil.which("gcc"), sysconfig.get_path("include")
    if gcc is None or not (Path(include) / "Python.h").exists():
        pytest.skip("needs gcc and the headers of Python")
    where = tmp_path_factory.mktemp("exporters")
    (where / "exporters.c").write_text(SOURCE)
    library = where / f"exporters{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([gcc, "-shared", "-fPIC", f"-I{include}", where / "exporters.c", "-o", library], check=True, timeout=120)
    spec = importlib.util.spec_from_file_location("exporters", library)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)

    def make(get: Callable[[int], bytes], release: Callable[[], None] = nothing) -> Any:
        return made.Exporter(get, release)

    return make


def stage(wal: pmwal.Wal, data: Any) -> None:
    """Append in a batch."""
    with wal.batch() as batch:
        batch.append(data)


CALLS: dict[str, Callable[[pmwal.Wal, Any], Any]] = {
    "append": lambda wal, data: wal.append(data),
    "append with kind": lambda wal, data: wal.append(data, kind=3),
    "append without commit": lambda wal, data: wal.append(data, commit=False),
    "extend": lambda wal, data: wal.extend([data]),
    "extend, second": lambda wal, data: wal.extend([b"first", data, b"third"]),
    "extend generator": lambda wal, data: wal.extend(item for item in (b"first", data)),
    "batch": stage,
}


class Raises:
    """A ``get`` that raises at its first call, and counts calls."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, flags: int) -> bytes:
        self.calls += 1
        if self.calls == 1:
            raise self.error
        return b"hello"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), MemoryError(), RuntimeError("mine"), OSError(5, "mine"), ValueError("mine"),
     BufferError("mine"), GeneratorExit(), StopIteration()],
    ids=repr,
)  # fmt: skip
def test_what_an_exporter_raises_reaches_the_caller(
    path: Path, exporter: Callable[..., Any], error: BaseException, name: str
) -> None:
    """The very exception, after one call of the exporter; nothing is stored and the log stays usable."""
    get = Raises(error)
    with open_small(path) as wal:
        with pytest.raises(type(error)) as caught:
            CALLS[name](wal, exporter(get))
        assert caught.value is error
        assert get.calls == 1
        assert wal.append(b"next") == 1
        assert payloads(wal) == [b"next"]


@pytest.mark.parametrize("name", CALLS)
def test_interrupt_that_arrives_in_an_exporter_is_raised(path: Path, exporter: Callable[..., Any], name: str) -> None:
    """Ctrl-C while the exporter works ends the call."""

    def get(flags: int) -> bytes:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
        return b"slow"

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with open_small(path) as wal:
            with pytest.raises(KeyboardInterrupt):
                CALLS[name](wal, exporter(get))
            assert payloads(wal) == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_type_error_of_an_exporter_says_what_a_record_is(path: Path, exporter: Callable[..., Any]) -> None:
    """A TypeError is how a type says that it is no buffer."""

    def refuse(flags: int) -> bytes:
        raise TypeError("not this time")

    with open_small(path) as wal:
        for call in CALLS.values():
            with pytest.raises(TypeError, match="a record is bytes or another contiguous buffer, not Exporter"):
                call(wal, exporter(refuse))
        assert len(wal) == 0


@pytest.mark.parametrize("name", ["rollback", "append", "truncate", "close", "commit", "collect"])
def test_release_of_a_buffer_may_use_the_log(path: Path, exporter: Callable[..., Any], name: str) -> None:
    """The buffer is released in the middle of the call: what that does to the log leaves it consistent."""
    wal = open_small(path)
    wal.extend([b"a", b"b"])
    actions: dict[str, Callable[[], object]] = {
        "rollback": lambda: wal.rollback(after=1),
        "append": lambda: wal.append(b"inside"),
        "truncate": lambda: wal.truncate(before=wal.next_seq),
        "close": wal.close,
        "commit": wal.commit,
        "collect": gc.collect,
    }
    for call in (wal.append, lambda data: wal.extend([data])):
        try:
            call(exporter(lambda flags: b"abc", actions[name]))
        except pmwal.PmwalError:
            assert name == "close"
    if name != "close":
        wal.append(b"next")
        assert payloads(wal)[-1] == b"next"
        wal.close()
    with pmwal.open(path, "r") as reader:
        assert reader.recovery.outcome == "clean"


class Text(str):
    """A kind of str."""


@pytest.mark.parametrize("text", ["text", "", np.str_("hé"), np.str_(""), Text("text"), "\ud800"], ids=repr)
@pytest.mark.parametrize("name", CALLS)
def test_text_is_refused_and_the_message_says_encode(path: Path, name: str, text: str) -> None:
    """Also where it exports its characters as a buffer, as numpy.str_ does: 4 bytes for each."""
    with open_small(path) as wal:
        with pytest.raises(TypeError, match=r"encode it first: text.encode\(\)"):
            CALLS[name](wal, text)
        assert len(wal) == 0


OBJECTS = {
    "array": np.array([None, 1], dtype=object),
    "scalar array": np.array(None, dtype=object),
    "structured": np.zeros(2, dtype=[("a", "i4"), ("b", "O")]),
    "nested": np.zeros(2, dtype=[("a", [("b", "i4"), ("c", "O")])]),
    "subarray": np.zeros(2, dtype=[("a", "O", (2,))]),
    "ctypes": (ctypes.py_object * 2)(),
}


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("name", CALLS)
def test_python_objects_are_refused(path: Path, name: str, kind: str) -> None:
    """Their buffer is a list of addresses, which mean nothing to the next process."""
    with open_small(path) as wal:
        with pytest.raises(TypeError, match="Python objects"):
            CALLS[name](wal, OBJECTS[kind])
        assert len(wal) == 0


TEXT = "w" if sys.version_info >= (3, 13) else "u"  # the latter warns since then

BUFFERS: dict[str, tuple[Callable[[], Any], bytes]] = {
    "array of text": (lambda: array.array(TEXT, "hé"), array.array(TEXT, "hé").tobytes()),
    "array of d": (lambda: array.array("d", [1.5]), array.array("d", [1.5]).tobytes()),
    "ctypes int": (lambda: ctypes.c_int(7), (7).to_bytes(4, "little")),
    "ctypes array": (lambda: (ctypes.c_uint16 * 2)(1, 2), b"\1\0\2\0"),
    "cast": (lambda: memoryview(bytes(range(8))).cast("H"), bytes(range(8))),
    "cast to two dimensions": (lambda: memoryview(bytes(range(6))).cast("B", (2, 3)), bytes(range(6))),
    "numpy text": (lambda: np.array(["hé"]), np.array(["hé"]).tobytes()),
    "numpy bytes": (lambda: np.array([b"ab", b"c"]), b"abc\0"),
    "numpy scalar": (lambda: np.int16(3), b"\3\0"),
    "numpy bool": (lambda: np.array([True, False]), b"\1\0"),
    "numpy big-endian": (lambda: np.array([1], dtype=">u2"), b"\0\1"),
    "numpy read-only": (lambda: np.frombuffer(b"abc", np.uint8), b"abc"),
    "field named O": (lambda: np.zeros(1, dtype=[("O", "u1"), ("Or", "u1")]), b"\0\0"),
    "empty": (lambda: np.empty(0), b""),
    "empty strided": (lambda: np.empty((0, 4))[:, ::2], b""),
    "empty view": (lambda: memoryview(b"")[::2], b""),
    "one strided": (lambda: memoryview(b"abc")[::5], b"a"),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_bytes_of_any_other_buffer_are_stored_as_they_are(path: Path, kind: str) -> None:
    """Of any format, shape and length, in the order of memory."""
    make, expected = BUFFERS[kind]
    with open_small(path) as wal:
        for call in CALLS.values():
            call(wal, make())
        found = [data for data in payloads(wal) if data not in (b"first", b"third")]
        assert [expected] * len(CALLS) == found


@pytest.mark.parametrize(
    "make", [lambda: np.arange(8)[::2], lambda: np.arange(6).reshape(2, 3).T, lambda: memoryview(b"abcd")[::-1]]
)
def test_buffer_with_gaps_is_refused(path: Path, make: Callable[[], Any]) -> None:
    """Which bytes are meant would be a guess, so the message says how to copy it."""
    with open_small(path) as wal:
        for call in CALLS.values():
            with pytest.raises(ValueError, match="ascontiguousarray"):
                call(wal, make())
        assert len(wal) == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a class in Python can export a buffer since 3.12")
def test_exporter_in_python_is_treated_the_same(path: Path) -> None:
    """PEP 688: what ``__buffer__`` raises reaches the caller, and what it returns is stored."""

    class Exporter:
        def __init__(self, get: Callable[[int], bytes]) -> None:
            self._get = get

        def __buffer__(self, flags: int) -> memoryview:
            return memoryview(self._get(flags))

    with open_small(path) as wal:
        for call in CALLS.values():
            for error in (KeyboardInterrupt(), SystemExit(3), MemoryError(), RuntimeError("mine")):
                get = Raises(error)
                with pytest.raises(type(error)):
                    call(wal, Exporter(get))
                assert get.calls == 1
        assert len(wal) == 0
        wal.append(Exporter(lambda flags: b"hello"))
        assert payloads(wal) == [b"hello"]
