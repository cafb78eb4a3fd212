package programmer

import (
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
)

// SweepRequest asks for one sweep. Requests that come while a sweep runs become one.
type SweepRequest struct {
	// Gone are the addresses of pods that were detached. They are clean before another pod gets them; see await.
	Gone []netip.Addr
	// Wider says that policies have changed so that they can only allow more: it matters to connections that they
	// denied before.
	Wider bool
	// Start asks for everything that may have happened while there was no agent, or no switch.
	Start bool
}

// sweepRequest is the request that the loop makes when it has programmed what is under way.
func (l *Loop) sweepRequest() *SweepRequest {
	if l.sweep == nil {
		l.sweep = &SweepRequest{}
	}
	l.sweep.Wider = false
	return l.sweep
}

// sweepAfter asks for a sweep when a change of the snapshot may concern connections that exist.
func (l *Loop) sweepAfter(before, now *model.Snapshot, owners []model.Owner) {
	policies := before.KeepEstablished && !now.KeepEstablished || !reflect.DeepEqual(before.Self, now.Self) ||
		!slices.Equal(before.LocalAddrs, now.LocalAddrs)
	wider := false
	had := sync.OnceValue(func() map[netip.Addr]bool { return addrsOf(before) })
	tried := sync.OnceValue(func() map[netip.Addr]bool { return addrsOf(l.tried) })
	fresh := func(addr netip.Addr) bool { return !had()[addr] }
	for _, o := range owners {
		switch {
		case o.Kind.IsPolicy():
			if _, staged := o.Kind.Policy(); staged {
				continue
			}
			was, _ := before.PolicyOf(o)
			is, _ := now.PolicyOf(o)
			if l.quarantined[o] != nil {
				was = was.FailClosed()
			}
			policies = policies || flows.Narrows(was, is, fresh)
			wider = true
		case o.Kind == model.KindService:
			if !reflect.DeepEqual(udpPorts(before.Services[o.Name]), udpPorts(now.Services[o.Name])) {
				l.sweepRequest()
			}
		case o.Kind == model.KindPod:
			has := now.Attachments[o.Attachment]
			for _, ip := range before.Attachments[o.Attachment].IPs {
				// While the switch is away pods come and go of which it never hears, in any number.
				if !slices.Contains(has.IPs, ip) && (l.tried == nil || tried()[ip]) {
					r := l.sweepRequest()
					if !slices.Contains(r.Gone, ip) {
						r.Gone = append(r.Gone, ip)
					}
				}
			}
		}
	}
	switch {
	case now.KeepEstablished:
	case policies:
		l.sweepRequest()
	case wider && l.sweep == nil:
		l.sweep = &SweepRequest{Wider: true}
	}
}

func addrsOf(s *model.Snapshot) map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	for _, a := range s.Attachments {
		for _, ip := range a.IPs {
			all[ip] = true
		}
	}
	return all
}

// udpPorts are the ports of a Service whose connections a sweep may remove.
func udpPorts(s model.Service) (ports []model.ServicePort) {
	for _, p := range s.Ports {
		if p.Protocol == model.UDP {
			ports = append(ports, p)
		}
	}
	return ports
}
