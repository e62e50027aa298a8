"""Mutated PyTorch and safetensors files against their reader: read or refused, quickly, in little memory, nothing executed.

The pickles of zip files are changed before they are packed, so that changes are not lost to a checksum. Run by hand:

    python -m tests.fuzz.fuzz_pytorch --inputs 200000 [--seed 1] [FILE ...]
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from onnx_builder import NetworkError
from sidecar.models.pytorch.state_dict import Choices, from_bytes
from tests.fuzz.fuzz_read import MEGABYTES, SECONDS, bound_memory, changed_bytes
from tests.torch_files import FORMS, STATE, Call, Global, Ordered, Tensor, Writer, legacy_file, numbers, zip_file

_HARMFUL = ("pickle.", "os.", "subprocess.", "socket.", "exec", "compile", "ctypes.", "shutil.", "open")
"""Beginnings of audit events of which reading causes none."""
_EVIL = Call("posix.system", ("false",), {"a": [1, (2, 3.5)]})
_ARRAY = Call("numpy._core.multiarray._reconstruct", (Global("numpy.ndarray"), (0,), "b"), (1, (3,), "values"))
_NORMS = {f"1.{part}": Tensor(numbers(4)) for part in ("weight", "bias", "running_mean", "running_var")}
SAVED = [
    STATE,
    Ordered(STATE, "", "0", "1", "2"),
    {"state_dict": Ordered(STATE, "", "0", "1", "2"), "callbacks": _EVIL, "hyper_parameters": {"activation": "tanh", "n": 3}},
    {"model": STATE, "mean": Tensor(numbers(3)), "rng": _ARRAY, "grid": {(1, 2): 0.5}, "tags": b"\x8f(K\1K\2\x90"},
    {
        "net": {**STATE, **_NORMS},
        "args": Call("argparse.Namespace", (), {"lr": 0.1, "hidden": [64, 32]}),
        "kind": Global("app.Net"),
    },
    {"a": STATE, "b": [STATE, {"deep": b"capp\nNode\n)Rq\0h\0b"}], "self": b"]q\1h\1a", "more": b"capp\nMap\n)\x81}K\1K\2sb"},
    {f"{name}.{key}": tensor for name in ("model", "ema") for key, tensor in STATE.items()},
]


def mutated_pickle(chance: random.Random) -> bytes:
    """A zip file as torch.save writes it, with a changed pickle in it."""
    writer = Writer()
    pickles = [writer.pickle(value) for value in SAVED]
    pickled = changed_bytes(chance.choice(pickles), pickles, chance)
    return zip_file({}, **{"data.pkl": pickled}, **{f"data/{key}": values.tobytes() for key, values in writer.storages.items()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("files", type=Path, nargs="*")
    arguments = parser.parse_args()
    whole = [FORMS["safetensors"](STATE), *map(legacy_file, SAVED), zip_file(SAVED[2])]
    whole += [path.read_bytes() for path in arguments.files]
    kinds: list[Callable[[random.Random], bytes]] = [
        mutated_pickle,
        lambda chance: changed_bytes(chance.choice(whole), whole, chance),
    ]
    chance, networks, slowest = random.Random(arguments.seed), 0, 0.0
    watching, events, failures = False, [], []

    def audit(event: str, arguments: object) -> None:
        if watching and event.startswith(_HARMFUL):
            events.append(f"{event} {arguments!r:.200}")

    sys.addaudithook(audit)
    for write in FORMS.values():  # what is imported on first use; msgspec evaluates the annotations of our own types
        from_bytes(write(STATE))
    bound_memory(MEGABYTES)
    for number in range(arguments.inputs):
        data = chance.choice(kinds)(chance)
        choices = Choices(key=chance.choice(["", "", "model", "ema", "state_dict"]))
        start, watching = time.process_time(), True
        try:
            from_bytes(data, choices)
            networks += 1
        except NetworkError:
            pass
        except Exception as error:
            failures.append(f"input {number}: {''.join(traceback.format_exception(error)[-3:])}")
        watching, slowest = False, max(slowest, time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(*failures[:20], sep="\n")
    print(
        f"{arguments.inputs} inputs, {networks} networks, {len(failures)} failures, {len(events)} harmful events "
        f"{sorted(set(events))}; slowest {slowest * 1000:.0f} ms; {peak:.0f} MB"
    )
    return int(bool(failures or events) or slowest > SECONDS)


if __name__ == "__main__":
    raise SystemExit(main())
