"""A Ray cluster of several nodes on this machine, which can be killed, in a process of its own.

with ray_nodes(3) as cluster:
    ...  # clipsam batch ... --address cluster.address
    cluster.kill()
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

MEMORY = 80 << 20  # bytes of a node's object store; little more than the least that Ray takes


@dataclass
class Nodes:
    """A running cluster.

    Attributes:
      address: for `clipsam batch --address`.
    """

    address: str
    _commands: IO[str]
    _answers: IO[str]

    def kill(self) -> None:
        """Kill all processes of one node, which is not the head."""
        self._ask("kill")

    def add(self) -> None:
        """Start one more node."""
        self._ask("add")

    def _ask(self, command: str) -> None:
        print(command, file=self._commands, flush=True)
        if (answer := self._answers.readline().strip()) != "done":
            raise RuntimeError(f"the cluster answered {answer!r}")


@contextmanager
def ray_nodes(count: int, cpus: int = 1) -> Iterator[Nodes]:
    """A cluster of `count` nodes with so many CPUs each."""
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        command = [sys.executable, "-W", "ignore", __file__, str(count), str(cpus)]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder},
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise RuntimeError("the cluster did not start")
            try:
                yield Nodes(address, process.stdin, process.stdout)
            finally:
                process.stdin.close()  # it ends with its input
                process.stdout.read()


def main() -> None:
    """The cluster's process: what it is told comes by standard input."""
    from ray.cluster_utils import Cluster

    count, cpus = int(sys.argv[1]), int(sys.argv[2])
    about: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args={**about, "include_dashboard": False})
    others = [cluster.add_node(**about) for _ in range(count - 1)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(others.pop(), allow_graceful=False)
        else:
            others.append(cluster.add_node(**about))
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
