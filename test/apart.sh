#!/bin/sh
# Runs a command in namespaces of its own: processes, mounts with an empty /run, and a network that leads nowhere. So labs
# run beside a cluster, and neither sees the other when it compares the machine with before. Needs root.
exec unshare --net --mount --pid --fork --kill-child --mount-proc \
	sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"' apart "$@"
