package service

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
)

// candidate is an endpoint and its port number for one port of a Service.
type candidate struct {
	*Endpoint
	port  uint16
	local bool
}

// candidates are the endpoints of one port and family, usable or not, sorted by address and port, each once.
type candidates []candidate

// gather collects a port's endpoints from all slices. The port's name and protocol select the number in each slice.
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
	// An endpoint that moves from one slice to another may be in both for a while.
	return slices.CompactFunc(out, func(a, b candidate) bool { return a.Addr == b.Addr && a.port == b.port })
}

// compare sorts by address and port. Of several versions of one endpoint, the one to use comes first: local, ready,
// serving. The remaining keys only make the order total, so that it does not depend on the order of the slices.
func (c candidate) compare(d candidate) int {
	return cmp.Or(c.Addr.Compare(d.Addr), cmp.Compare(c.port, d.port),
		trueFirst(c.local, d.local), trueFirst(c.Ready, d.Ready), trueFirst(c.Serving, d.Serving),
		trueFirst(d.Terminating, c.Terminating),
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

// leaving reports that an endpoint terminates but still serves: the fallback when no endpoint is ready.
func (c candidate) leaving() bool { return c.Serving && c.Terminating }

func (c candidate) usable() bool { return c.Ready || c.leaving() }

// cluster returns the endpoints for traffic policy Cluster: the ready ones and, where hints apply, those with a hint
// for this node or zone.
func (cs candidates) cluster(at Locality) []candidate {
	meant := cs.hints(at)
	ready := cs.filter(func(c candidate) bool { return c.Ready && meant(c) })
	if len(ready) > 0 {
		return ready
	}
	return cs.filter(candidate.leaving)
}

// local returns the endpoints for traffic policy Local. Hints do not apply to it.
func (cs candidates) local() []candidate {
	ready := cs.filter(func(c candidate) bool { return c.local && c.Ready })
	if len(ready) > 0 {
		return ready
	}
	return cs.filter(func(c candidate) bool { return c.local && c.leaving() })
}

// retained lists the serving endpoints that new connections do not use. An endpoint of a Service with
// publishNotReadyAddresses counts as ready although its pod is not, and so may be ready without serving.
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

// hints returns the filter for the hints of the ready endpoints: by node, else by zone, else none. Hints of a kind
// apply when all ready endpoints have one and at least one of them names this node or zone, so that they never leave
// the node without endpoints.
func (cs candidates) hints(at Locality) func(candidate) bool {
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

// healthy counts a node's ready endpoints of a family as the health check does: by address, on any port, without the
// terminating ones.
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
