package service

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// candidate is an endpoint at one port of a Service.
type candidate struct {
	*Endpoint
	port  uint16
	local bool
}

// candidates are the endpoints of one port and family, usable or not, sorted by address and port and each once.
type candidates []candidate

// gather finds a port's endpoints in all slices: the port's name and protocol lead from the Service to a number.
func gather(from []*Slice, p Port, is4 bool, node string) candidates {
	var out candidates
	for _, s := range from {
		if len(s.Endpoints) == 0 || s.Endpoints[0].Addr.Is4() != is4 {
			continue
		}
		for _, sp := range s.Ports {
			if sp.Name != p.Name || sp.Protocol != p.Protocol {
				continue
			}
			out = slices.Grow(out, len(s.Endpoints))
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				out = append(out, candidate{Endpoint: e, port: sp.Port, local: e.onNode(node)})
			}
		}
	}
	slices.SortFunc(out, candidate.compare)
	// While endpoints move from one slice to another they may be in both.
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.Addr == b.Addr && a.port == b.port })
}

// compare sorts by address and port, and then the version of an endpoint first that is believed: the local, the ready, the serving.
// The rest only makes the order total, so that it does not depend on the order of the slices.
func (c candidate) compare(d candidate) int {
	return cmp.Or(c.Addr.Compare(d.Addr), cmp.Compare(c.port, d.port),
		trueFirst(c.local, d.local), trueFirst(c.Ready, d.Ready), trueFirst(c.Serving, d.Serving), trueFirst(d.Terminating, c.Terminating),
		slices.Compare(c.ForZones, d.ForZones), slices.Compare(c.ForNodes, d.ForNodes), cmp.Compare(c.Pod, d.Pod))
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func (e *Endpoint) onNode(node string) bool { return node != "" && e.Node == node }

// leaving says that an endpoint is terminating but still serves: what is left when nothing is ready.
func (c candidate) leaving() bool { return c.Serving && c.Terminating }

func (c candidate) usable() bool { return c.Ready || c.leaving() }

// cluster chooses under the traffic policy Cluster: what is ready and, if hints can be followed, meant for this place.
func (cs candidates) cluster(at Place) []candidate {
	meant := cs.hints(at)
	ready := cs.filter(func(c candidate) bool { return c.Ready && meant(c) })
	if len(ready) > 0 {
		return ready
	}
	return cs.filter(candidate.leaving)
}

// local chooses under the traffic policy Local. Hints do not count there.
func (cs candidates) local() []candidate {
	ready := cs.filter(func(c candidate) bool { return c.local && c.Ready })
	if len(ready) > 0 {
		return ready
	}
	return cs.filter(func(c candidate) bool { return c.local && c.leaving() })
}

// retained lists the serving endpoints that new connections do not use. Kubernetes counts an endpoint of a Service with
// publishNotReadyAddresses as ready although its pod is not, and so as not serving.
func (cs candidates) retained(p model.ServicePort) []netip.AddrPort {
	chosen := make(map[netip.AddrPort]bool, len(p.Cluster)+len(p.Local))
	for _, e := range slices.Concat(p.Cluster, p.Local) {
		chosen[netip.AddrPortFrom(e.Addr, e.Port)] = true
	}
	var out []netip.AddrPort
	for _, c := range cs {
		if at := netip.AddrPortFrom(c.Addr, c.port); (c.Ready || c.Serving) && !chosen[at] {
			out = append(out, at)
		}
	}
	return out
}

// hints gives the filter that the hints of the ready endpoints ask for: by node, else by zone, else none. Hints of a kind are
// followed when all of them have one, and one is meant for this place: traffic is kept near only where that leaves somebody to
// take it.
func (cs candidates) hints(at Place) func(candidate) bool {
	forNode := func(c candidate) bool { return slices.Contains(c.ForNodes, at.Node) }
	forZone := func(c candidate) bool { return slices.Contains(c.ForZones, at.Zone) }
	allNodes, allZones, thisNode, thisZone := true, true, false, false
	for _, c := range cs {
		if !c.Ready {
			continue
		}
		allNodes, thisNode = allNodes && len(c.ForNodes) > 0, thisNode || forNode(c)
		allZones, thisZone = allZones && len(c.ForZones) > 0, thisZone || forZone(c)
	}
	switch {
	case allNodes && thisNode:
		return forNode
	case allZones && thisZone:
		return forZone
	}
	return func(candidate) bool { return true }
}

func (cs candidates) filter(keep func(candidate) bool) []candidate {
	var out []candidate
	for _, c := range cs {
		if keep(c) {
			out = append(out, c)
		}
	}
	return out
}

// healthy counts a node's ready endpoints of a family as the health check does: by address, whatever the port, not the terminating
// ones.
func healthy(from []*Slice, is4 bool, node string) int {
	addrs := map[netip.Addr]bool{}
	for _, s := range from {
		if len(s.Ports) == 0 {
			continue
		}
		for i := range s.Endpoints {
			if e := &s.Endpoints[i]; e.Ready && e.onNode(node) && e.Addr.Is4() == is4 {
				addrs[e.Addr] = true
			}
		}
	}
	return len(addrs)
}
