package connectivity

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// How targets are tried.
const (
	patience = 2 * time.Second
	attempts = 2
	// deniedPatience is how long an answer that a policy denies is waited for.
	deniedPatience = time.Second
	// transfer is the number of bytes of a stream: many packets of the full size, both ways.
	transfer = 1 << 18
	// mostPeers is how many of the other nodes each node tries.
	mostPeers = 10
)

// world is the pods of the test as they run.
type world struct {
	options Options
	// clients and servers are by node.
	clients, servers map[string]pod
	service          service
}

// check is a target with its names for people.
type check struct {
	client pod
	to     string
	target Target
	// denies says that the target must not be reached.
	denies bool
}

// test is one line of the report.
type test struct {
	name, about string
	// plan lists the checks; skipped says why there are none.
	plan func(w *world) (checks []check, skipped string)
	// within is how long the checks are repeated until they hold.
	within time.Duration
}

// tests run in this order, before there is a policy.
var tests = []test{
	{"pod-same-node", "HTTP and UDP between pods of one node", func(w *world) ([]check, string) {
		return w.toServers(true, anyProtocol), ""
	}, 0},
	{"pod-other-node", "HTTP and UDP between pods of different nodes", func(w *world) ([]check, string) {
		return w.toServers(false, anyProtocol), w.oneNode()
	}, 0},
	{"largest-packet", "a datagram of the MTU's size, and a stream, between nodes", func(w *world) ([]check, string) {
		return w.toServers(false, large), w.oneNode()
	}, 0},
	{"cluster-ip", "a Service at its cluster IPs", (*world).toClusterIPs, 0},
	{"node-port", "the Service at a port of every node, from pods", (*world).toNodePorts, 0},
	{"host-port", "a pod's port at its node's address, from pods of other nodes", (*world).toHostPorts, 0},
	{"dns", "names of Services", (*world).toNames, 0},
	{"outside", "an address outside of the cluster, from pods of every node", (*world).toOutside, 0},
}

// policyTests run after the policy was created, which takes effect soon after.
var policyTests = []test{
	{"policy-denies", "what no rule of a NetworkPolicy allows", func(w *world) ([]check, string) {
		checks := append(w.toServers(true, notAllowed), w.toServers(false, notAllowed)...)
		for i := range checks {
			checks[i].denies = true
		}
		return checks, ""
	}, 10 * time.Second},
	{"policy-allows", "what a rule of a NetworkPolicy allows", func(w *world) ([]check, string) {
		return append(w.toServers(true, onlyHTTP), w.toServers(false, onlyHTTP)...), ""
	}, 0},
}

func at(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), strconv.Itoa(port)) }

func anyProtocol(a netip.Addr) []Target {
	return []Target{{Protocol: HTTP, Address: at(a, Port)}, {Protocol: HTTP, Address: at(a, OtherPort)},
		{Protocol: UDP, Address: at(a, Port), Size: 64}}
}

func large(a netip.Addr) []Target {
	return []Target{{Protocol: UDP, Address: at(a, Port), Size: LargestPacket},
		{Protocol: HTTP, Address: at(a, Port), Size: transfer}}
}

func onlyHTTP(a netip.Addr) []Target { return []Target{{Protocol: HTTP, Address: at(a, Port)}} }

func notAllowed(a netip.Addr) []Target {
	return []Target{{Protocol: HTTP, Address: at(a, OtherPort), Attempts: 1, Timeout: deniedPatience},
		{Protocol: UDP, Address: at(a, Port), Size: 64, Attempts: 1, Timeout: deniedPatience}}
}

func (w *world) oneNode() string {
	if len(w.options.Nodes) < 2 {
		return "it takes two nodes"
	}
	return ""
}

// each calls do with the client of each node and the nodes that it tries, beginning with the next one.
func (w *world) each(do func(client pod, own Node, peers []Node)) {
	nodes := w.options.Nodes
	for i, n := range nodes {
		client, ok := w.clients[n.Name]
		if !ok {
			continue
		}
		var peers []Node
		for j := 1; j < len(nodes) && len(peers) < mostPeers; j++ {
			peers = append(peers, nodes[(i+j)%len(nodes)])
		}
		do(client, n, peers)
	}
}

// newCheck makes a check, with the usual patience where the target has none.
func newCheck(client pod, to string, t Target) check {
	if t.Attempts == 0 {
		t.Attempts, t.Timeout = attempts, patience
	}
	return check{client: client, to: fmt.Sprintf("%s at %s, %s", to, t.Address, t.Protocol), target: t}
}

// toServers are checks from each client to the server of its own node, or to those of others.
func (w *world) toServers(own bool, targets func(netip.Addr) []Target) []check {
	var checks []check
	w.each(func(client pod, n Node, peers []Node) {
		if own {
			peers = []Node{n}
		}
		for _, peer := range peers {
			server := w.servers[peer.Name] // without addresses when it does not run
			for _, ip := range server.Status.PodIPs {
				for _, t := range targets(ip.IP) {
					checks = append(checks, newCheck(client, server.String(), t))
				}
			}
		}
	})
	return checks
}

// fromAll are the same targets for every client.
func (w *world) fromAll(to string, targets ...Target) []check {
	var checks []check
	w.each(func(client pod, _ Node, _ []Node) {
		for _, t := range targets {
			checks = append(checks, newCheck(client, to, t))
		}
	})
	return checks
}

func (w *world) toClusterIPs() (checks []check, skipped string) {
	for _, ip := range w.service.Spec.ClusterIPs {
		checks = append(checks, w.fromAll("Service "+serviceName, Target{Protocol: HTTP, Address: at(ip, Port)},
			Target{Protocol: UDP, Address: at(ip, Port), Size: 64})...)
	}
	return checks, ""
}

// atNode are checks of a port at the addresses of a node, in the families that the Service has.
func (w *world) atNode(client pod, n Node, to string, port int) (checks []check) {
	families := map[bool]bool{}
	for _, ip := range w.service.Spec.ClusterIPs {
		families[ip.Is4()] = true
	}
	for _, a := range n.Addrs {
		if families[a.Is4()] {
			checks = append(checks, newCheck(client, to, Target{Protocol: HTTP, Address: at(a, port)}))
		}
	}
	return checks
}

func (w *world) toNodePorts() (checks []check, skipped string) {
	w.each(func(client pod, own Node, peers []Node) {
		for _, n := range append([]Node{own}, peers...) {
			checks = append(checks, w.atNode(client, n, "node port of "+n.Name, w.service.nodePort())...)
		}
	})
	return checks, ""
}

func (w *world) toHostPorts() (checks []check, skipped string) {
	if w.options.HostPort == 0 {
		return nil, "--host-port is 0"
	}
	w.each(func(client pod, _ Node, peers []Node) {
		for _, n := range peers {
			if server, ok := w.servers[n.Name]; ok {
				checks = append(checks, w.atNode(client, n, "host port of "+server.String(), w.options.HostPort)...)
			}
		}
	})
	return checks, w.oneNode()
}

func (w *world) toNames() (checks []check, skipped string) {
	name := serviceName + "." + w.options.Namespace + ".svc"
	return w.fromAll("DNS", Target{Protocol: DNS, Address: name, Want: w.service.Spec.ClusterIPs},
		Target{Protocol: DNS, Address: "kubernetes.default.svc"}), ""
}

func (w *world) toOutside() (checks []check, skipped string) {
	if len(w.options.Outside) == 0 {
		return nil, "--outside HOST:PORT names an address to try"
	}
	for _, address := range w.options.Outside {
		checks = append(checks, w.fromAll("outside", Target{Protocol: TCP, Address: address})...)
	}
	return checks, ""
}
