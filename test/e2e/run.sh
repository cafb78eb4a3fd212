#!/usr/bin/env bash
# Runs the end-to-end suite on one fresh cluster after the other: IPv4 over Geneve with all tests, then dual stack over
# VXLAN with those whose outcome depends on the way between nodes or on the family, and a part of Kubernetes' own specs.
# Every pairing can be named; `make nightly` has dual stack over Geneve and IPv6 alone. Before the clusters, the cluster
# tool itself is tested: that nothing of a cluster stays, whatever happened to it.
#
#   test/e2e/run.sh                     the clusters of CI
#   test/e2e/run.sh --transports        the other ways between nodes (make e2e-transports)
#   test/e2e/run.sh dual/vxlan          just these, with all tests
set -euo pipefail
cd "$(dirname "$0")/../.."

IMAGE=${IMAGE:-dist/weft-image.tar}
DIR=$(mktemp -d /tmp/weft-e2e.XXXXXX)
NAME=e2e$$
LOGS=$PWD/dist/e2e-logs
ON_THE_WIRE='TestMesh|TestControlPlane|TestLarge|TestHosts|TestPods|TestMTU|TestSpoofing|TestTunnelSpoofing|TestWeftctl|TestExec|TestKubelet|TestHostPort|TestDNS|TestClusterIP|TestNodePort|TestExternalTrafficPolicy|TestServiceWithout|TestNetworkPolicy'

mkdir -p bin "$LOGS"
go build -C test -o ../bin/cluster ./cluster
go test -C test -c -tags e2e -o ../bin/e2e.test ./e2e
go test -c -tags e2e -o bin/deploy.test ./deploy
go test -C test -c -tags e2e -o ../bin/demo.test ./demo

clean() {
	if [ "$1" -ne 0 ] && [ -d "$DIR" ]; then
		# What the nodes' programs and the pods had to say is all there is to go by.
		find "$DIR" \( -name '*.log' -o -path '*/pods/*' \) -type f -size -20M -exec cp --parents -t "$LOGS" {} +
		echo "the cluster's logs are in $LOGS" >&2
	fi
	bin/cluster down --dir "$DIR" --name "$NAME" >/dev/null
	rm -rf "$DIR"
}
trap 'clean $?' EXIT

run() { # FAMILY/TRANSPORT [TESTS [FOCUS]]
	local family=${1%/*} transport=${1#*/} way
	case $transport in
	direct | hybrid) way=(--set "transport=$transport") ;;
	*) way=(--tunnel "$transport") ;;
	esac
	date "+=== $family over $transport, %T" | tee -a "${TIMELINE:-/dev/null}"
	bin/cluster up --dir "$DIR" --name "$NAME" --nodes 3 --ip-family "$family" "${way[@]}" --image "$IMAGE"
	(cd test/e2e && WEFT_CLUSTER_DIR=$DIR ../../bin/e2e.test -test.v -test.timeout 15m -test.artifacts -test.outputdir "$LOGS" -test.run "${2:-.}")
	if [ $# -eq 3 ]; then
		bin/cluster conformance --dir "$DIR" --name "$NAME" --focus "$3"
	fi
	if [ $# -eq 1 ]; then
		(cd deploy && WEFT_KUBECONFIG=$DIR/kubeconfig ../bin/deploy.test -test.v -test.timeout 5m)
		(cd test/demo && WEFT_CLUSTER_DIR=$DIR ../../bin/demo.test -test.v -test.timeout 5m)
	fi
	bin/cluster down --dir "$DIR" --name "$NAME"
}

if [ "${1-}" = --transports ]; then
	for combination in dual/gre ipv4/direct ipv6/direct dual/direct dual/hybrid; do run "$combination" "$ON_THE_WIRE"; done
	exit
fi
if [ $# -gt 0 ]; then
	for combination; do run "$combination"; done
	exit
fi
go test -C test -tags e2e -count=1 -timeout 20m ./cluster ./cluster/routes
run ipv4/geneve
run dual/vxlan "$ON_THE_WIRE|TestTunnelChange|TestSwitchRestart" ci
