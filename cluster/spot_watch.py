"""python -m dgn.cluster.spot_watch: runs on a spot machine and drains its Ray node when EC2 gives notice.

EC2 announces two minutes ahead, in the machine's own metadata, that it takes a spot machine back. Ray 2.60 does not ask
for it. A drained node is given no new work, and whoever asks Ray for draining nodes knows it before the node dies.

Source: Amazon EC2 User Guide, "Spot Instance interruption notices".
"""

from __future__ import annotations

import logging
import os
import sys
import time
from datetime import datetime
from typing import Annotated, Any

import requests
import typer
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from dgn.text import in_one_line

log = logging.getLogger(__name__)
POLL_S = 5.0  # as the user guide advises
MAX_WAIT_S = 60.0  # between questions to a service that does not answer; leaves one of the two minutes
TIMEOUT_S = 2.0
TOKEN_TTL_S = 60  # a new token for every question, so that none expires


def spot_notice(session: requests.Session) -> dict[str, Any] | None:
    """The notice, {"action": "terminate", "time": "2026-01-01T00:00:00Z"}, or None as long as there is none.

    Raises: requests.RequestException where the metadata service (IMDSv2) does not answer, or not as documented.
    """
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/") + "/latest"
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
    token = session.put(f"{base}/api/token", headers=ttl, timeout=TIMEOUT_S)
    token.raise_for_status()
    headers = {"X-aws-ec2-metadata-token": token.text}
    answer = session.get(f"{base}/meta-data/spot/instance-action", headers=headers, timeout=TIMEOUT_S)
    if answer.status_code == requests.codes.not_found:
        return None
    answer.raise_for_status()
    return answer.json()


def _say_once(state: RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome:
        log.warning("no answer from the instance metadata service, still trying: %s", state.outcome.exception())


def wait_for_notice() -> dict[str, Any]:
    """Asks until there is a notice, for as long as that takes."""
    session = requests.Session()
    session.trust_env = False  # the address is link-local: no proxy reaches it
    patiently = Retrying(
        retry=retry_if_exception_type(requests.RequestException),
        wait=wait_exponential_jitter(initial=1, max=MAX_WAIT_S),
        before_sleep=_say_once,
    )
    while (notice := patiently(spot_notice, session)) is None:
        time.sleep(POLL_S)
    return notice


def own_node(gcs_address: str) -> str:
    """The hex id of the one Ray node that this machine is. Raises: SystemExit if it is none or several."""
    from ray._private.services import find_node_ids
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    # By the ids of this machine's raylet processes, not by address: a machine may have several addresses.
    here = set(find_node_ids()) & {node.hex() for node in GcsClient(address=gcs_address).get_all_node_info()}
    if len(here) != 1:
        sys.exit(f"this machine has {len(here)} nodes of the cluster at {gcs_address}, expected one: give --node-id")
    return here.pop()


def drain(gcs_address: str, node_id: str, notice: dict[str, Any]) -> None:
    """Drains the node until the time of the notice: the call behind `ray drain-node`, without its start-up time."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    deadline = max(datetime.fromisoformat(notice["time"]).timestamp(), time.time() + 1)
    message = f"EC2 spot notice: {notice['action']} at {notice['time']}"
    log.warning("%s, draining node %s", message, node_id)
    for attempt in Retrying(
        retry=retry_if_exception_type(RayError),
        wait=wait_exponential_jitter(initial=1, max=10),
        stop=stop_after_delay(deadline - time.time()),
        reraise=True,
    ):
        with attempt:
            accepted, reason = GcsClient(address=gcs_address).drain_node(
                node_id, DRAIN_NODE_REASON_PREEMPTION, message, int(deadline * 1000)
            )
    if not accepted:
        sys.exit(f"Ray refused to drain node {node_id}: {reason}")


def main(
    address: Annotated[str, typer.Option(help="HOST:PORT of the cluster's GCS.")] = "auto",
    node_id: Annotated[str | None, typer.Option(help="Default: this machine's only node.")] = None,
) -> None:
    """Wait for EC2's spot notice, then drain this machine's Ray node."""
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray.exceptions import RayError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        gcs_address = canonicalize_bootstrap_address_or_die(address)
        node_id = node_id or own_node(gcs_address)
        log.info("watching for a spot notice on behalf of node %s", node_id)
        drain(gcs_address, node_id, wait_for_notice())
    except (ConnectionError, RayError) as error:
        sys.exit(f"cannot talk to Ray at {address}: {in_one_line(error)}")


if __name__ == "__main__":
    typer.run(main)
