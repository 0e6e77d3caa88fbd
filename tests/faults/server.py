"""A process that has imported everything and forks a child for each command: a start costs no six seconds.

Started by :class:`tests.faults.layer.ForkServer` under the shim. Requests are JSON lines on stdin, answers on stdout.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
from typing import Any, NoReturn

PROGRAMS = ("logodata", "logotrain", "logoeval")

# What the commands import on their way; nothing here starts a thread or loads a model.
IMPORTED = (
    "bm25s",
    "peft",
    "pyarrow.parquet",
    "torch._dynamo",
    "torch.distributed.checkpoint._fsspec_filesystem",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.checkpoint.state_dict_saver",
    "torch.distributed.fsdp",
    "torch.utils.serialization",
    "transformers.generation",
    "transformers.models.llama.modeling_llama",
    "logodata.build.build",
    "logodata.contexts.scores",
    "logodata.engines.transformers_engine",
    "logotrain.trainer",
    "logoeval.tasks.needles.attention_trace",
    "logoeval.run",
)


def serve() -> None:
    """Answer requests until stdin ends."""
    for name in (*IMPORTED, *(f"{program}.cli" for program in PROGRAMS)):
        importlib.import_module(name)
    importlib.import_module("tqdm").tqdm.get_lock()  # a semaphore, which glibc writes by itself, to /dev/shm
    gc.collect()
    gc.freeze()  # a child's collections leave what it inherits alone: its pages stay shared
    print(json.dumps({"ready": True}), flush=True)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _become(request, writer)
        os.close(writer)
        answer = _wait(child, request["limit_s"])
        said = os.read(reader, 64)  # nothing, if it was killed
        os.close(reader)
        print(json.dumps({**answer, "unseen": int(said or 0)}), flush=True)
    os._exit(0)  # without what libraries say when they are torn down


def _become(request: dict[str, Any], answer: int) -> NoReturn:
    """In the child: output to a file, the fault armed, and then the program as ``python -m`` would run it.

    It ends as Python ends, but for the tearing down of all modules, which would take longer than the command. Last it
    answers how many bytes the kernel saw written that the shim did not.
    """
    out = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    shim = ctypes.CDLL(None)
    shim.fault_bytes.restype = ctypes.c_longlong
    shim.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p)
    before = _written() - shim.fault_bytes()
    shim.fault_arm(request["folder"].encode(), request["at"], request["mode"].encode(), request["trace"].encode())
    program = importlib.import_module(f"{request['program']}.cli")
    try:
        code: int = program.main(request["argv"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Before the end: there, libraries wake their threads by eventfd_write, glibc's own and to no file.
    os.write(answer, str(_written() - shim.fault_bytes() - before).encode())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    os._exit(code)


def _written() -> int:
    """Bytes that this process has handed to the kernel to write, whichever way."""
    with open("/proc/self/io", encoding="ascii") as file:
        return int(dict(line.split(": ") for line in file)["wchar"])


def _wait(child: int, limit_s: float) -> dict[str, Any]:
    """The child's exit code, negative for a signal; it is killed if it takes too long."""
    handle = os.pidfd_open(child)
    ended, _, _ = select.select([handle], [], [], limit_s)
    os.close(handle)
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "hung": not ended}


if __name__ == "__main__":
    serve()
