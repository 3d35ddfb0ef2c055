"""What Ray Serve does here: throughput in turns with a plain server, then losses of replicas and nodes under load.

python scripts/ray_cluster.py [--rounds N] [--seconds S] [--json FILE]: some ten minutes on two free cores. A head
without replicas and nodes of one core each, all on this machine; the environment is that of `.[ray,bench]`. (With `mcp`
in it, LitServe does not start.) --only PART ... does less: speed, replica, hang, node, upgrade, autoscale, overload.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
for variable, value in {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.ray_serving:problems",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "PYTHONPATH": sys.path[0],
    "NO_PROXY": "*",
}.items():
    os.environ[variable] = value

import psutil  # noqa: E402

from benchmarks import ROOT, WEIGHTS  # noqa: E402
from benchmarks.load import free_port, receive, request, serving  # noqa: E402

PICTURE = (ROOT / "app" / "static" / "sample.jpg").read_bytes()
PARTS = ("speed", "replica", "hang", "node", "upgrade", "autoscale", "overload")


class Answer(NamedTuple):
    """One request's end: how long it took, its status, and the caption, or the code of the problem, that it said."""

    seconds: float
    status: int
    said: str
    version: str


class Address(NamedTuple):
    """Where pictures are captioned, on this machine."""

    port: int
    path: str = "/caption"


class Load:
    """Clients that ask one after another, as many at once as there are."""

    def __init__(self, address: Address, clients: int) -> None:
        self.address, self.answers, self._stop = address, list[Answer](), threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def _ask(self) -> None:
        connection: socket.socket | None = None
        while not self._stop.is_set():
            began = time.monotonic()
            status, said, version = 0, "", ""
            try:
                connection = connection or connected(self.address)
                status, answer = ask(connection, self.address)
                said = answer["caption" if status == 200 else "code"]
                version = answer.get("model", {}).get("version", "")
            except (OSError, ValueError):
                if connection:
                    connection.close()
                connection = None
            self.answers.append(Answer(time.monotonic() - began, status, said, version))
            if status != 200:
                time.sleep(0.1)
        if connection:
            connection.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def report(self) -> dict[str, Any]:
        """Requests, those that failed and how, the captions said, versions, and milliseconds."""
        good = [a for a in self.answers if a.status == 200]
        times = sorted(1000 * a.seconds for a in good)
        return {
            "requests": len(self.answers),
            "failed": dict(Counter(f"{a.status} {a.said}" for a in self.answers if a.status != 200)),
            "captions": len({a.said for a in good}),
            "versions": dict(Counter(a.version for a in good)),
            "p50_ms": round(statistics.median(times), 1) if times else None,
            "p99_ms": round(times[int(0.99 * (len(times) - 1))], 1) if times else None,
        }


def connected(address: Address) -> socket.socket:
    """A connection that packs nothing together, which would wait."""
    connection = socket.create_connection(("127.0.0.1", address.port), timeout=120)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ask(connection: socket.socket, address: Address) -> tuple[int, Any]:
    """A picture's answer: its status, and what it says."""
    connection.sendall(request(PICTURE, address.path))
    answer = receive(connection)
    return int(answer[9:12]), json.loads(answer.partition(b"\r\n\r\n")[2])


def until(what: Callable[[], bool], seconds: float = 600) -> float:
    """Wait; how long it took."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > seconds:
            raise TimeoutError
        time.sleep(0.1)
    return time.monotonic() - began


def patiently(call: Callable[[], object], tries: int = 10) -> None:
    """Call again what gives Ray's proxy a minute to start, without an option for more: busy machines take longer."""
    for left in reversed(range(tries)):
        try:
            call()
            return
        except TimeoutError:
            if not left:
                raise


def answers(address: Address) -> bool:
    """Whether a picture gets a caption there."""
    try:
        with connected(address) as connection:
            return ask(connection, address)[0] == 200
    except (OSError, ValueError):
        return False


class Cluster:
    """A head without CPUs, nodes of one CPU, and a proxy at the head."""

    def __init__(self, nodes: int) -> None:
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster as Nodes

        self.port = free_port()
        memory = 100_000_000
        self.nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
        self.more = [self.add() for _ in range(nodes)]
        ray.init(address=self.nodes.address, log_to_driver=False)
        http = {"host": "127.0.0.1", "port": self.port}
        patiently(lambda: serve.start(proxy_location="HeadOnly", http_options=http))

    def add(self) -> Any:
        """One node more."""
        return self.nodes.add_node(num_cpus=1, object_store_memory=100_000_000)

    def deploy(self, name: str, replicas: int, model: Path = WEIGHTS, **options: Any) -> Address:
        """An application of so many replicas, up and running; its address. replicas: 0 for `options` to say."""
        from ray import serve

        from app.ray_serving import Arguments, Captions

        arguments = Arguments(settings={"model": str(model)})
        if replicas:
            options |= {"num_replicas": replicas, "autoscaling_config": None}
        deployment = Captions.options(**options)  # type: ignore[attr-defined]
        patiently(lambda: serve.run(deployment.bind(arguments), name=name, route_prefix=f"/{name}"))
        return Address(self.port, f"/{name}/caption")

    def clear(self, keep: set[str]) -> None:
        """Delete the other applications: their cores are for those to come."""
        from ray import serve

        for name in set(serve.status().applications) - keep:
            serve.delete(name)

    def running(self, name: str) -> int:
        """How many replicas an application has."""
        from ray import serve

        states = serve.status().applications[name].deployments["captions"].replica_states
        return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")

    def processes(self, name: str) -> list[psutil.Process]:
        """The replicas of an application."""
        return self._called(f"ServeReplica:{name}:captions")

    def cpu(self, name: str) -> float:
        """Seconds of CPU of an application's replicas, with their decoders, and of the proxy before them."""
        replicas = self.processes(name)
        below = [child for process in replicas for child in process.children()]
        times = [process.cpu_times() for process in (*replicas, *below, *self._called("ProxyActor"))]
        return sum(time.user + time.system for time in times)

    def _called(self, title: str) -> list[psutil.Process]:
        """Processes that Ray has named so."""
        found = []
        for process in psutil.process_iter():
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        """End all of it."""
        import ray

        ray.shutdown()
        self.nodes.shutdown()  # type: ignore[no-untyped-call]


def speed(cluster: Cluster, rounds: int, seconds: float) -> dict[str, Any]:
    """Captions a second of each contender in turns; the ratio to a plain server with one worker, round by round."""
    app, litserve = ("-m", "app"), ("-m", "benchmarks.servers", "litserve-ours")
    with (
        serving(app, PICTURE, CAPTION_THREADS=1) as one,
        serving((*app, "--workers", "2"), PICTURE, CAPTION_THREADS=1) as two,
        serving((*litserve, "--workers", "2"), PICTURE) as lit,
    ):
        return turns(
            {
                "plain server, 1 worker of 1 thread": (Address(one.port), one.cpu),
                "plain server, 2 workers of 1 thread": (Address(two.port), two.cpu),
                "Ray Serve, 1 replica": (cluster.deploy("one", 1), partial(cluster.cpu, "one")),
                "Ray Serve, 2 replicas": (cluster.deploy("two", 2), partial(cluster.cpu, "two")),
                "LitServe, 2 workers": (Address(lit.port), lit.cpu),
            },
            rounds,
            seconds,
        )


def turns(contenders: dict[str, tuple[Address, Callable[[], float]]], rounds: int, seconds: float) -> dict[str, Any]:
    """Each contender under load for some seconds, in another order each round; with it, a function for its CPU time."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    failed: dict[str, int] = dict.fromkeys(contenders, 0)
    names = list(contenders)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            address, cpu = contenders[name]
            until(lambda address=address: answers(address))  # type: ignore[misc]
            before = cpu()
            with Load(address, clients=8) as load:
                time.sleep(seconds)
            good = [a for a in load.answers if a.status == 200]
            rates[name].append(len(good) / seconds)
            costs[name].append(1000 * (cpu() - before) / len(good))
            times[name] += [1000 * a.seconds for a in good]
            failed[name] += len(load.answers) - len(good)
    first = rates[names[0]]
    return {
        name: {
            "rate": round(statistics.median(rates[name]), 1),
            "ratio": round(statistics.median(r / f for r, f in zip(rates[name], first, strict=True)), 2),
            "cpu_ms": round(statistics.median(costs[name]), 1),
            "p50_ms": round(statistics.median(times[name]), 1),
            "p99_ms": round(sorted(times[name])[int(0.99 * (len(times[name]) - 1))], 1),
            "failed": failed[name],
        }
        for name in contenders
    }


def replica(cluster: Cluster, seconds: float, how: int = signal.SIGKILL) -> dict[str, Any]:
    """Kill a replica under load, or stop it as if it hung, which only health checks notice."""
    address = cluster.deploy("two", 2)
    with Load(address, clients=8) as load:
        time.sleep(seconds)
        victim, *_ = cluster.processes("two")
        victim.send_signal(how)
        killed = time.monotonic()
        until(lambda: cluster.running("two") < 2)
        until(lambda: cluster.running("two") == 2)
        back = time.monotonic() - killed
        time.sleep(seconds)
    return {"held_at_most": 8, "back_s": round(back, 1), **load.report()}


def node(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """Kill a whole node under load, while another without replicas stands by."""
    address = cluster.deploy("two", 2)
    spare = cluster.add()
    with Load(address, clients=8) as load:
        time.sleep(seconds)
        pids = {process.pid for process in cluster.processes("two")}
        for one in cluster.more:
            raylet = one.all_processes["raylet"][0].process.pid
            if pids & {child.pid for child in psutil.Process(raylet).children(recursive=True)}:
                cluster.nodes.remove_node(one, allow_graceful=False)
                cluster.more.remove(one)
                break
        killed = time.monotonic()
        cluster.more.append(spare)
        until(lambda: cluster.running("two") < 2)
        until(lambda: cluster.running("two") == 2)
        back = time.monotonic() - killed
        time.sleep(seconds)
    return {"held_at_most": 8, "back_s": round(back, 1), **load.report()}


def upgrade(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """Another version of the model, replica by replica, under load."""
    address = cluster.deploy("two", 2)
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        shutil.copytree(WEIGHTS, other)
        config = json.loads((other / "config.json").read_text())
        _renamed(config, "another")
        (other / "config.json").write_text(json.dumps(config))
        with Load(address, clients=8) as load:
            time.sleep(seconds)
            cluster.deploy("two", 2, other)
            time.sleep(seconds)
        cluster.deploy("two", 2)
    return load.report()


def _renamed(config: Any, version: str) -> None:
    """Change the model's version, wherever in the configuration it is."""
    for key, value in config.items():
        if key == "version" and isinstance(value, str):
            config[key] = version
        elif isinstance(value, dict):
            _renamed(value, version)


def autoscale(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """A step of load up and down: replicas come and go, and no request is lost."""
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(
        min_replicas=1, max_replicas=2, target_ongoing_requests=4, upscale_delay_s=2, downscale_delay_s=10
    )
    address = cluster.deploy("auto", 0, autoscaling_config=config)
    with Load(address, clients=12) as high:
        up = until(lambda: cluster.running("auto") == 2)
        time.sleep(seconds)
    with Load(address, clients=1) as low:
        down = until(lambda: cluster.running("auto") == 1)
        time.sleep(seconds)
    return {"up_s": round(up, 1), "down_s": round(down, 1), "high": high.report(), "low": low.report()}


def overload(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """More clients than may wait: some are told so at once, the others get their captions."""
    address = cluster.deploy("small", 1, max_ongoing_requests=2, max_queued_requests=2)
    with Load(address, clients=12) as load:
        time.sleep(seconds)
    return load.report()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    made: dict[str, Any] = {"cpu": cpu(), "cores": os.cpu_count()}
    seconds = options.seconds
    parts: dict[str, Callable[[Cluster], dict[str, Any]]] = {
        "speed": lambda cluster: speed(cluster, options.rounds, seconds),
        "replica": lambda cluster: replica(cluster, seconds),
        "hang": lambda cluster: replica(cluster, seconds, signal.SIGSTOP),
        "node": lambda cluster: node(cluster, seconds),
        "upgrade": lambda cluster: upgrade(cluster, seconds),
        "autoscale": lambda cluster: autoscale(cluster, seconds),
        "overload": lambda cluster: overload(cluster, seconds),
    }
    cluster = Cluster(3)
    try:
        for part in options.only:
            cluster.clear(keep={"two"} if part in ("replica", "hang", "node", "upgrade") else set())
            made[part] = parts[part](cluster)
            print(part, json.dumps(made[part]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(made, indent=1) + "\n")
    finally:
        cluster.close()
    return 0


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(main())
