"""What Ray Serve does here: throughput in turns with a plain server, then losses of replicas and nodes under load.

python scripts/ray_cluster.py [--rounds N] [--seconds S] [--json FILE]: some ten minutes on two free cores. A head
without replicas and nodes of one core each, all on this machine; `ray[serve]` and, to be compared with it, litserve
must be installed. --only PART ... does less: speed, replica, node, upgrade, autoscale.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for variable, value in {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.ray_serving:problems",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "PYTHONPATH": str(ROOT),
    "NO_PROXY": "*",
}.items():
    os.environ[variable] = value

import httpx  # noqa: E402
import psutil  # noqa: E402

WEIGHTS = ROOT / "model" / "weights" / "default"
PICTURE = ROOT / "app" / "static" / "sample.jpg"
PARTS = ("speed", "replica", "node", "upgrade", "autoscale")


class Answer(NamedTuple):
    """One request's end: seconds of the clock and of waiting, status, and what it said."""

    at: float
    seconds: float
    status: int
    caption: str
    version: str


class Load:
    """Clients that ask one after another, as many at once as there are."""

    def __init__(self, url: str, clients: int) -> None:
        self.url, self.answers, self._stop = url, list[Answer](), threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        self._data = PICTURE.read_bytes()

    def _ask(self) -> None:
        with httpx.Client(timeout=120, trust_env=False) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                status, caption, version = 0, "", ""
                try:
                    answer = client.post(self.url, files={"image": ("a.jpg", self._data)})
                    status = answer.status_code
                    if status == 200:
                        said = answer.json()
                        caption, version = said["caption"], said.get("model", {}).get("version", "")
                except httpx.HTTPError:
                    pass
                self.answers.append(Answer(began, time.monotonic() - began, status, caption, version))
                if status != 200:
                    time.sleep(0.1)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def report(self) -> dict[str, Any]:
        """Requests, those that failed by status, the captions said, versions, and milliseconds."""
        good = [a for a in self.answers if a.status == 200]
        times = sorted(1000 * a.seconds for a in good)
        return {
            "requests": len(self.answers),
            "failed": dict(Counter(str(a.status) for a in self.answers if a.status != 200)),
            "captions": len({a.caption for a in good}),
            "versions": dict(Counter(a.version for a in good)),
            "p50_ms": round(statistics.median(times), 1) if times else None,
            "p99_ms": round(times[int(0.99 * (len(times) - 1))], 1) if times else None,
        }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def until(what: Callable[[], bool], seconds: float = 600) -> float:
    """Wait; how long it took."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > seconds:
            raise TimeoutError
        time.sleep(0.1)
    return time.monotonic() - began


def answers(url: str) -> bool:
    """Whether a picture gets a caption there."""
    try:
        with httpx.Client(timeout=60, trust_env=False) as client:
            return client.post(url, files={"image": ("a.jpg", PICTURE.read_bytes())}).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def server(command: list[str], url: str, **settings: str) -> Iterator[None]:
    """A plain server for as long as the block."""
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        until(lambda: answers(url))
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


class Cluster:
    """A head without CPUs, nodes of one CPU, and a proxy at the head."""

    def __init__(self, nodes: int) -> None:
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster as Nodes
        from ray.serve._private import api

        # Seconds that a busy machine may take to start the proxy; there is no option for it.
        setattr(api, "HTTP_PROXY_TIMEOUT", 600)  # noqa: B010 (the name is not exported)
        self.port = free_port()
        memory = 100_000_000
        self.nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
        self.more = [self.add() for _ in range(nodes)]
        ray.init(address=self.nodes.address, log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})

    def add(self) -> Any:
        """One node more."""
        return self.nodes.add_node(num_cpus=1, object_store_memory=100_000_000)

    def deploy(self, name: str, replicas: int, model: Path = WEIGHTS, **options: Any) -> str:
        """An application of so many replicas, up and running; its address. replicas: 0 for `options` to say."""
        from ray import serve

        from app.ray_serving import Arguments, Captions

        arguments = Arguments(settings={"model": str(model)})
        if replicas:
            options |= {"num_replicas": replicas, "autoscaling_config": None}
        deployment = Captions.options(**options)  # type: ignore[attr-defined]
        serve.run(deployment.bind(arguments), name=name, route_prefix=f"/{name}")
        return f"http://127.0.0.1:{self.port}/{name}/caption"

    def running(self, name: str) -> int:
        """How many replicas an application has."""
        from ray import serve

        states = serve.status().applications[name].deployments["captions"].replica_states
        return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")

    def processes(self, name: str) -> list[psutil.Process]:
        """The replicas of an application."""
        found = []
        for process in psutil.process_iter():
            try:
                if f"ServeReplica:{name}:captions" in " ".join(process.cmdline()):
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
    ports = [free_port() for _ in range(3)]
    python = sys.executable
    one, two, lit = (f"http://127.0.0.1:{port}/caption" for port in ports)
    contenders = {
        "plain server, 1 worker of 1 thread": one,
        "plain server, 2 workers of 1 thread": two,
        "Ray Serve, 1 replica": cluster.deploy("one", 1),
        "Ray Serve, 2 replicas": cluster.deploy("two", 2),
    }
    command = [python, "-m", "app", "--port"]
    with (
        server([*command, str(ports[0])], one, CAPTION_THREADS="1"),
        server([*command, str(ports[1]), "--workers", "2"], two, CAPTION_THREADS="1"),
    ):
        try:
            import litserve  # noqa: F401
        except ImportError:
            return _turns(contenders, rounds, seconds)
        litserve_command = [python, "-m", "benchmarks.servers", "litserve-ours", "--port", str(ports[2])]
        with server([*litserve_command, "--workers", "2"], lit):
            return _turns({**contenders, "LitServe, 2 workers": lit}, rounds, seconds)


def _turns(contenders: dict[str, str], rounds: int, seconds: float) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    failed: dict[str, int] = dict.fromkeys(contenders, 0)
    for _ in range(rounds):
        for name, url in contenders.items():
            until(lambda url=url: answers(url))  # type: ignore[misc]
            with Load(url, clients=8) as load:
                time.sleep(seconds)
            good = [a for a in load.answers if a.status == 200]
            rates[name].append(len(good) / seconds)
            times[name] += [1000 * a.seconds for a in good]
            failed[name] += len(load.answers) - len(good)
    first = rates[next(iter(rates))]
    return {
        name: {
            "rate": round(statistics.median(rates[name]), 1),
            "ratio": round(statistics.median(r / f for r, f in zip(rates[name], first, strict=True)), 2),
            "p50_ms": round(statistics.median(times[name]), 1),
            "p99_ms": round(sorted(times[name])[int(0.99 * (len(times[name]) - 1))], 1),
            "failed": failed[name],
        }
        for name in contenders
    }


def replica(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """Kill a replica under load."""
    url = cluster.deploy("two", 2)
    with Load(url, clients=8) as load:
        time.sleep(seconds)
        victim, *_ = cluster.processes("two")
        victim.kill()
        until(lambda: cluster.running("two") < 2)
        back = until(lambda: cluster.running("two") == 2)
        time.sleep(seconds)
    return {"held_at_most": 8, "back_s": round(back, 1), **load.report()}


def node(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """Kill a whole node under load, while another without replicas stands by."""
    url = cluster.deploy("two", 2)
    spare = cluster.add()
    with Load(url, clients=8) as load:
        time.sleep(seconds)
        pids = {process.pid for process in cluster.processes("two")}
        for one in cluster.more:
            raylet = one.all_processes["raylet"][0].process.pid
            if pids & {child.pid for child in psutil.Process(raylet).children(recursive=True)}:
                cluster.nodes.remove_node(one, allow_graceful=False)
                cluster.more.remove(one)
                break
        cluster.more.append(spare)
        until(lambda: cluster.running("two") < 2)
        back = until(lambda: cluster.running("two") == 2)
        time.sleep(seconds)
    return {"held_at_most": 8, "back_s": round(back, 1), **load.report()}


def upgrade(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """Another version of the model, replica by replica, under load."""
    url = cluster.deploy("two", 2)
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        shutil.copytree(WEIGHTS, other)
        config = json.loads((other / "config.json").read_text())
        _renamed(config, "another")
        (other / "config.json").write_text(json.dumps(config))
        with Load(url, clients=8) as load:
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
    url = cluster.deploy("auto", 0, autoscaling_config=config)
    with Load(url, clients=12) as high:
        up = until(lambda: cluster.running("auto") == 2)
        time.sleep(seconds)
    with Load(url, clients=1) as low:
        down = until(lambda: cluster.running("auto") == 1)
        time.sleep(seconds)
    return {"up_s": round(up, 1), "down_s": round(down, 1), "high": high.report(), "low": low.report()}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    made: dict[str, Any] = {"cpu": cpu(), "cores": os.cpu_count()}
    cluster = Cluster(3)
    try:
        for part in options.only:
            if part == "speed":
                made[part] = speed(cluster, options.rounds, options.seconds)
                from ray import serve

                serve.delete("one")  # its core is for the others
            else:
                made[part] = {"replica": replica, "node": node, "upgrade": upgrade, "autoscale": autoscale}[part](
                    cluster, options.seconds
                )
                if part == "upgrade":
                    from ray import serve

                    serve.delete("two")
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
