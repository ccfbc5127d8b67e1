#!/usr/bin/env bash
# A Ray head whose dashboard agent finds its port taken starts, answers, and never accepts a job.
#
# Seen with ray 2.60.0, Python 3.11, Linux. The agent of each node listens on port 52365, or on the one that is given by
# --dashboard-agent-listen-port. If another program has it (a second Ray on the machine, for instance), the agent goes on
# without its HTTP service. `ray start --head` reports success, `ray status` shows the node alive with its cores, and
# tasks run. But `ray job submit` is refused by "No available agent to submit job, please try again later", however
# long one waits and tries. Why is written in dashboard_agent.log alone. Port 0 takes a free one, and jobs are accepted.
#
# Output seen:
#   port taken: ray status counts 1 active node
#   port taken: job refused for a minute: No available agent to submit job, please try again later
#   port 0: ray status counts 1 active node
#   port 0: job succeeded
set -euo pipefail
folder=$(mktemp -d /tmp/ray-XXXX)
head=
listener=
finish() {
    for process in $head $listener; do
        kill "$process" 2> /dev/null || true
        wait "$process" 2> /dev/null || true
    done
    rm -rf "$folder"
}
trap finish EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[default]==2.60.0"
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS

port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# look NAME AGENT_PORT
look() {
    local gcs dashboard tries refusal
    gcs=$(port)
    dashboard=$(port)
    "$folder/venv/bin/ray" start --head --block --num-cpus=1 --node-ip-address=127.0.0.1 --port="$gcs" \
        --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --dashboard-agent-listen-port="$2" \
        --temp-dir="$folder/$1" > "$folder/$1.log" 2>&1 &
    head=$!
    until "$folder/venv/bin/ray" status --address="127.0.0.1:$gcs" > "$folder/status" 2> /dev/null; do sleep 1; done
    until grep -q "^ 1 node" "$folder/status"; do
        "$folder/venv/bin/ray" status --address="127.0.0.1:$gcs" > "$folder/status"
        sleep 1
    done
    echo "$3: ray status counts 1 active node"
    for tries in $(seq 20); do
        if "$folder/venv/bin/ray" job submit --address="http://127.0.0.1:$dashboard" -- true > "$folder/job" 2>&1; then
            echo "$3: job succeeded"
            break
        fi
        sleep 2
    done
    if ! grep -q succeeded "$folder/job"; then
        refusal=$(grep -o "No available agent to submit job, please try again later" "$folder/job" | head -1)
        echo "$3: job refused for a minute: $refusal"
    fi
    kill "$head"
    wait "$head" 2> /dev/null || true
    head=
}

python3 -c '
import socket, sys, time
taken = socket.create_server(("127.0.0.1", 0))
print(taken.getsockname()[1], flush=True)
time.sleep(600)
' > "$folder/port" &
listener=$!
until [ -s "$folder/port" ]; do sleep 0.1; done
{
    look a "$(cat "$folder/port")" "port taken"
    look b 0 "port 0"
} > "$folder/output"
cat "$folder/output"
sed -n 's/^#   //p' "$0" | diff - "$folder/output"
