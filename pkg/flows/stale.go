package flows

import (
	"net/netip"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Stale are connections through a Service that must begin anew: their first packets were sent where later ones must not go.
// Only UDP needs it. A TCP client hears that its endpoint is gone; a UDP socket may send to nobody for ever.
type Stale struct {
	// Frontend is the address and port that the clients send to; when it is invalid, it may be any.
	Frontend netip.AddrPort
	// Endpoint is where they were sent; when it is invalid, all connections to the frontend are meant.
	Endpoint netip.AddrPort
}

// maxStaleEndpoints is how many endpoints of one frontend are named one by one: each costs a request to the switch.
const maxStaleEndpoints = 32

// StaleConnections lists what a change of a Service leaves behind. A zero Service is none.
func StaleConnections(before, after model.Service) []Stale {
	old, now := frontends(before), frontends(after)
	var stale []Stale
	for frontend, p := range now {
		if _, had := old[frontend]; !had {
			// Whoever sent there before there was a Service is remembered as sending to nobody.
			stale = append(stale, Stale{Frontend: frontend})
			continue
		}
		stale = append(stale, gone(frontend, old[frontend], p)...)
	}
	for frontend, p := range old {
		if _, has := now[frontend]; !has {
			stale = append(stale, gone(frontend, p, model.ServicePort{})...)
		}
	}
	return stale
}

// maxStale is how many requests to the switch may wait.
const maxStale = 1000

// Bounded gives the same connections once each and, when they are too many to be named one by one, all connections to the
// addresses instead: a Service may have many ports and addresses, and its endpoints may come and go as fast as somebody likes.
func Bounded(stale []Stale) []Stale {
	coarse := len(stale) > maxStale
	seen := make(map[Stale]bool, len(stale))
	out := stale[:0:0]
	for _, s := range stale {
		if coarse && s.Frontend.IsValid() {
			s = Stale{Frontend: netip.AddrPortFrom(s.Frontend.Addr(), 0)}
		}
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// gone lists the endpoints that connections to a frontend may have and that serve no more.
func gone(frontend netip.AddrPort, before, after model.ServicePort) []Stale {
	live := map[netip.AddrPort]bool{}
	for _, e := range destinations(after) {
		live[e] = true
	}
	var stale []Stale
	for _, e := range destinations(before) {
		if !live[e] {
			live[e] = true // once
			stale = append(stale, Stale{frontend, e})
		}
	}
	if len(stale) > maxStaleEndpoints {
		return []Stale{{Frontend: frontend}}
	}
	return stale
}

// Serving lists the endpoints that a Service's UDP connections may have, each of them still serving. An endpoint can be listed more than once.
func Serving(s model.Service) []netip.AddrPort {
	var list []netip.AddrPort
	for _, p := range s.Ports {
		if p.Protocol == model.UDP {
			list = append(list, serving(p)...)
		}
	}
	return list
}

func serving(p model.ServicePort) []netip.AddrPort {
	list := make([]netip.AddrPort, 0, len(p.Cluster)+len(p.Local)+len(p.Retained))
	for _, endpoints := range [][]model.Endpoint{p.Cluster, p.Local} {
		for _, e := range endpoints {
			list = append(list, netip.AddrPortFrom(e.Addr, e.Port))
		}
	}
	return append(list, p.Retained...)
}

// destinations lists where connections to a port may lead: its serving endpoints, and the address of rejection while it rejects.
func destinations(p model.ServicePort) []netip.AddrPort {
	list := serving(p)
	if len(p.Cluster) == 0 && len(p.Local) == 0 && p.ClusterIP.IsValid() {
		list = append(list, netip.AddrPortFrom(model.RejectAddr(p.ClusterIP.Is4()), 0))
	}
	return list
}

// frontends are the addresses of a Service's UDP ports.
func frontends(s model.Service) map[netip.AddrPort]model.ServicePort {
	all := map[netip.AddrPort]model.ServicePort{}
	for _, p := range s.Ports {
		if p.Protocol != model.UDP {
			continue
		}
		for _, f := range p.Frontends() {
			all[f.At] = p
		}
	}
	return all
}

// StaleGroups lists the endpoints that a switch has sent clients to and that no Service has any more: what changed while
// there was no agent.
func StaleGroups(actual openflow.Contents, desired Desired) []Stale {
	now := map[netip.AddrPort]bool{}
	for _, g := range desired.Groups {
		for _, actions := range g.BucketActions() {
			if e, ok := openflow.TranslatedTo(actions); ok {
				now[e] = true
			}
		}
	}
	// Whoever was refused may be served by now.
	stale := []Stale{{Endpoint: netip.AddrPortFrom(model.RejectAddr(true), 0)}, {Endpoint: netip.AddrPortFrom(model.RejectAddr(false), 0)}}
	for _, g := range actual.Groups {
		if !OurGroup(g.ID) {
			continue
		}
		for _, actions := range g.BucketActions() {
			if e, ok := openflow.TranslatedTo(actions); ok && !now[e] {
				now[e] = true // once
				stale = append(stale, Stale{Endpoint: e})
			}
		}
	}
	return stale
}
