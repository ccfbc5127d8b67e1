"""Runs a job on a head that does no work, under Ray's real autoscaler, whose machines are processes here.

`python -m tests.helpers.autoscaled COMMAND...`, in a PID namespace of its own, because Ray's node provider kills the
processes that it finds. Prints how many machines there were before, at most, and after.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

import ray

CONFIG = {
    "cluster_name": "autoscaled",
    "max_workers": 3,
    "provider": {
        "type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True,
        "use_node_id_as_ip": True,  # all machines have this one's address
    },
    "head_node_type": "ray.head.default",  # the name that this provider knows
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 10**8}, "node_config": {},
            "min_workers": 0, "max_workers": 3,
        },
    },
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 1.0,
    "auth": {}, "docker": {}, "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
    "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [], "file_mounts": {},
    "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
}  # fmt: skip
SETTINGS = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}


def num_machines() -> int:
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


def main(command: list[str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(CONFIG, file)
        file.flush()
        subprocess.run(
            ["ray", "start", "--head", "--num-cpus=0", f"--autoscaling-config={file.name}"],
            env={**os.environ, **SETTINGS},
            stdout=sys.stderr,
            check=True,
        )
        ray.init(address="auto", log_to_driver=False)
        print("before", num_machines(), flush=True)
        address = ray.get_runtime_context().gcs_address
        job = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": address}, stdout=sys.stderr)
        most = 0
        while job.poll() is None:
            most = max(most, num_machines())
            time.sleep(0.2)
        print("most", most, flush=True)
        until = time.monotonic() + 90
        while num_machines() and time.monotonic() < until:
            time.sleep(0.5)
        print("after", num_machines(), "exit", job.returncode, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
