package agent

import (
	"context"
	"errors"
	"slices"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/model"
)

// change is something that parts have to look at. A part that makes one says so (Agent.wake); which parts it wakes is
// in the table alone.
type change string

const (
	viewChanged      change = "snapshot"
	nodesChanged     change = "nodes"
	servicesChanged  change = "Services"
	hostPortsChanged change = "host ports of pods"
	settingsChanged  change = "settings"
	mtuChanged       change = "MTU of the underlay"
	ovsdbChanged     change = "OVSDB"
	linksChanged     change = "links of pods"
	addressesChanged change = "addresses of the node"
	kernelChanged    change = "links, addresses, routes, nftables and sysctls of the node"
	bridgeRepaired   change = "bridge repaired"
	bridgeSynced     change = "bridge in sync"
	hostSynced       change = "host network in sync"
	reservedChanged  change = "addresses that the node needs"
	sweepRequested   change = "sweep requested"
	conditionWrong   change = "condition of the Node object"
)

// changesOf are the changes from one snapshot to a later one that parts look at, but for host ports.
func changesOf(before, now *model.Snapshot) []change {
	changes := []change{viewChanged}
	if before.NodesRevision != now.NodesRevision {
		changes = append(changes, nodesChanged)
	}
	if before.ServicesRevision != now.ServicesRevision {
		changes = append(changes, servicesChanged)
	}
	return changes
}

// Parts that others are after.
const (
	ovsdbPart       = "OVSDB"
	attachedPart    = "attached pods"
	informersPart   = "informers"
	objectsPart     = "objects of the API server"
	loopPart        = "loop"
	addressesPart   = "addresses of the node"
	routedPart      = "direct routes"
	underlayPart    = "underlay"
	recallPart      = "learned names"
	namesPart       = "domain names"
	bridgePart      = "bridge"
	switchPart      = "switch"
	hostPart        = "host network"
	programmedPart  = "first programming"
	restoreWaitPart = "flow-restore-wait"
	confListPart    = "CNI configuration"
	readyPart       = "readiness"
)

// sources are the changes that come from elsewhere: the function opens a channel that receives after each.
type sources map[change]func(context.Context) <-chan struct{}

// parts are the agent's table. Its order is that of a start: nothing is written to the switch before the informers have
// synced and the pods that are already attached are known.
func (a *Agent) parts(configured []byte) []part {
	parts := slices.Concat(a.serverParts(configured), a.startParts(), a.nodeParts(), a.readyParts())
	userspace := a.config().Datapath == config.DatapathNetdev
	return slices.DeleteFunc(parts, func(p part) bool { return p.userspace && !userspace })
}

// serverParts answer from the first moment: what is missing is what people want to know.
func (a *Agent) serverParts(configured []byte) []part {
	return []part{
		{
			name: "health address", does: "serves probes and metrics",
			run: neverFails(a.serveHealth),
		}, {
			name: "metrics address", does: "serves metrics, if `metricsAddr` is set",
			run: neverFails(a.serveMetrics),
		}, {
			name: "node health check", does: "tells load balancers whether the node serves",
			run: neverFails(func(ctx context.Context) { a.serveNodeHealth(ctx, a.config().NodeHealthAddr) }),
		}, {
			name: "socket of weftctl", does: "answers weftctl",
			run: readyAtOnce(a.serveOperator),
		}, {
			name: "configuration", does: "follows the configuration file",
			run: neverFails(func(ctx context.Context) { a.watchConfig(ctx, configured) }),
		}, {
			name: surroundingsPart, does: "names what of the node is in Weft's way: other plugins, kube-proxy, the kernel's modules",
			sync: a.syncSurroundings, mayFail: true,
		}, {
			name: "clock", does: "submits the time, for session affinity",
			run: neverFails(func(ctx context.Context) { tellTime(ctx, a.loop) }),
		},
	}
}

// startParts are what comes before the first flow.
func (a *Agent) startParts() []part {
	return []part{
		{
			name: ovsdbPart, does: "connects",
			once: a.connectOVSDB, close: a.closeOVSDB,
		}, {
			name: attachedPart, does: "recovers attachments from OVSDB and links", after: []string{ovsdbPart},
			once: a.recoverPods,
		}, {
			name: informersPart, does: "submit what the API server reports", after: []string{attachedPart},
			run: neverFails(func(ctx context.Context) { a.kube.Run(ctx) }),
		}, {
			name: apiProblem, does: "names what of its objects is missing or old", after: []string{attachedPart},
			run: neverFails(a.watchAPI),
		}, {
			name: objectsPart, does: "ready when all were received, or a copy of them was read", after: []string{informersPart},
			run: a.awaitObjects,
		}, {
			name: "copy", does: "keeps a copy of the objects on disk", after: []string{objectsPart},
			wokenBy: []change{viewChanged}, run: a.keepCopy,
		}, {
			name: loopPart, does: "makes the snapshot of the changes; programs the switch, once it may",
			after: []string{objectsPart},
			run:   a.runLoop,
		}, {
			name: nodeProblem, does: "waits for this node's addresses and pod CIDRs", after: []string{loopPart},
			wokenBy: []change{viewChanged}, once: a.selfKnown,
		}, {
			// Before the switch: flows that name these addresses are not to be removed and added again.
			name: addressesPart, does: "submits them, for policies", after: []string{nodeProblem},
			once: a.findAddresses,
		}, {
			name: routedPart, does: "finds the peer nodes to which the kernel has routes", after: []string{addressesPart},
			once: a.findReached,
		}, {
			// Before the bridge: its gateway must not change its MTU for a moment whenever an agent starts.
			name: underlayPart, does: "finds the MTU of pods", after: []string{routedPart},
			once: func(ctx context.Context) error { return errors.Join(a.findAddresses(ctx), a.findMTU(ctx)) },
		}, {
			name: bridgePart, does: "bridge, tunnels, pods' ports", after: []string{underlayPart},
			wokenBy: []change{ovsdbChanged, linksChanged, mtuChanged, nodesChanged}, sync: a.syncBridge,
			sources: sources{
				ovsdbChanged: func(context.Context) <-chan struct{} { return a.ovs.Changes() },
				linksChanged: func(ctx context.Context) <-chan struct{} { return a.cni.WatchLinks(ctx) },
			},
		}, {
			name: recallPart, does: "recalls the addresses of domain names", after: []string{loopPart},
			once: a.names.recall,
		}, {
			name: switchPart, does: "lets the loop program the switch", after: []string{bridgePart, recallPart},
			once: a.beginProgramming,
		},
	}
}

// nodeParts keep the node in order beside the loop.
func (a *Agent) nodeParts() []part {
	return []part{
		{
			name: "datapath", does: "settings that ovs-vswitchd forgets when it ends; tunnels' source address",
			after: []string{switchPart}, wokenBy: []change{bridgeSynced, addressesChanged}, sync: a.syncDatapath,
		}, {
			name: "MTU of pods", does: "gives running pods the MTU that new ones get", after: []string{switchPart},
			wokenBy: []change{mtuChanged}, sync: a.syncPods,
		}, {
			name: "tunnel neighbours", does: "resolves peer nodes' addresses (userspace datapath)", after: []string{switchPart},
			userspace: true, wokenBy: []change{nodesChanged}, sync: a.resolveNeighbours,
		}, {
			name: "health checks of Services", does: "answer load balancers about Services", after: []string{switchPart},
			wokenBy: []change{servicesChanged}, sync: a.syncHealthChecks, close: a.health.Close,
		}, {
			name: "sweep of connections", does: "ends connections that are no longer allowed", after: []string{switchPart},
			wokenBy: []change{sweepRequested}, sync: a.sweeper.sync,
			sources: sources{sweepRequested: func(context.Context) <-chan struct{} { return a.sweeper.wake }},
		}, {
			name: "policy log", does: "logs what policies decide that ask for it", after: []string{switchPart},
			wokenBy: []change{viewChanged}, sync: a.policyLog.sync, close: a.policyLog.close,
		}, {
			name: namesPart, does: "learns addresses of domain names from DNS answers, which it holds until the switch has them",
			after: []string{switchPart}, wokenBy: []change{viewChanged}, run: a.names.run,
		}, {
			name: "CNI server", does: "attaches and detaches pods", after: []string{switchPart},
			run: readyAtOnce(func(ctx context.Context) error { return a.cni.Serve(ctx) }),
		}, {
			name: reservedProblem, does: "finds those that no Service may have", after: []string{switchPart},
			sync: a.syncReserved, mayFail: true,
		}, {
			name: hostPart, does: "`weft0`, routes, nftables, sysctls", after: []string{reservedProblem},
			wokenBy: []change{
				kernelChanged, nodesChanged, servicesChanged, hostPortsChanged, settingsChanged, bridgeRepaired, reservedChanged,
			},
			sync: a.syncHost, sources: sources{kernelChanged: a.host.Watch},
		}, {
			name: publishProblem, does: "annotates the Node object with the node's uplinks, its WireGuard key, and in which forms it " +
				"receives packets", after: []string{hostPart},
			wokenBy: []change{nodesChanged, settingsChanged, addressesChanged, hostSynced}, run: a.publish,
		}, {
			name: handshakeProblem, does: "finds the peer nodes that packets can be encrypted to", after: []string{hostPart},
			wokenBy: []change{nodesChanged, hostSynced}, run: a.followHandshakes,
		}, {
			name: probeProblem, does: "ask their gateways whether packets arrive", after: []string{hostPart},
			wokenBy: []change{nodesChanged, mtuChanged, settingsChanged}, run: a.probePeers,
		}, {
			name: "connections of the kernel", does: "removes entries with a wrong translation", after: []string{hostPart},
			wokenBy: []change{hostSynced}, sync: a.flushConnections,
		},
	}
}

// readyParts are what makes the node ready.
func (a *Agent) readyParts() []part {
	return []part{
		{
			name: programmedPart, does: "waits until the switch has the flows", after: []string{hostPart},
			once: a.programmed,
		}, {
			name: restoreWaitPart, does: "is cleared when the flows are in", after: []string{programmedPart},
			wokenBy: []change{bridgeSynced}, sync: a.startForwarding,
		}, {
			name: confListPart, does: "is written, so that the kubelet sees the node ready", after: []string{restoreWaitPart},
			once: a.writeConfList,
		}, {
			name: readyPart, does: "lets probes and CNI commands succeed", after: []string{confListPart},
			once: a.becomeReady,
		}, {
			name: "node condition", does: "sets NetworkUnavailable to False", after: []string{readyPart},
			wokenBy: []change{conditionWrong}, sync: a.syncCondition,
		},
	}
}

// readyAtOnce is a part that others need not wait for.
func readyAtOnce(run func(context.Context) error) func(context.Context, <-chan struct{}, func()) error {
	return func(ctx context.Context, _ <-chan struct{}, ready func()) error {
		ready()
		return run(ctx)
	}
}

// neverFails is one that ends with its context alone.
func neverFails(run func(context.Context)) func(context.Context, <-chan struct{}, func()) error {
	return readyAtOnce(func(ctx context.Context) error { run(ctx); return nil })
}
