"""Start processes as torchrun does, forked from one that has imported everything: imports are paid for once.

``python -m tests.distributed.forked COUNT MODULE ARGUMENT`` calls ``tests.distributed.MODULE.main(ARGUMENT)`` in each.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from pathlib import Path

# What a run imports on its way; nothing here starts a thread.
IMPORTED = (
    "peft",
    "torch._dynamo.backends.debugging",
    "torch.distributed.checkpoint._fsspec_filesystem",
    "torch.distributed.checkpoint.state_dict_saver",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mixtral.modeling_mixtral",
    "logodata.dataset.samples",
    "logotrain.trainer",
)


def main(count: int, module: str, argument: Path) -> int:
    """Return the exit code of the first process that fails, else 0. Its failure ends the others."""
    called = importlib.import_module(f"tests.distributed.{module}").main
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child's collections leave what it inherits alone: its pages stay shared
    reader, writer = os.pipe()
    children = []
    for rank in range(count):
        children.append(os.fork())
        if children[-1] == 0:
            facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "TORCHELASTIC_RESTART_COUNT": 0}
            facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": int(os.read(reader, 5))}
            os.environ.update({name: str(value) for name, value in facts.items()})
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is the parent's, not rank 0's
            called(argument)
            return 0
    # Now that nobody inherits its thread.
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
    os.write(writer, f"{store.port:05}".encode() * count)
    code = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        if os.waitstatus_to_exitcode(status) and not code:
            code = 1
            for other in children:
                os.kill(other, signal.SIGKILL)
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
