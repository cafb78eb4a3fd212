package tracetest

import (
	"fmt"
	"slices"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/policy"
)

// Promise is what the policies promise about a packet.
func Promise(view policy.Cluster, p Packet) policy.Verdict {
	one := policy.Packet{Src: p.Src, Dst: p.Dst, Protocol: "ICMP"}
	for _, protocol := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
		if protocol.Number() == p.Protocol {
			one.Protocol, one.Port = protocol, p.DstPort
		}
	}
	return policy.Eval(view, one)
}

// Check compares what a packet did with what is promised: it arrived, or a policy dropped it.
func Check(promised policy.Verdict, d Delivery) error {
	switch {
	case promised.Allowed && !d.Arrived:
		return fmt.Errorf("it should arrive (%s), but: %s %s", promised.Why, d.Reason, d.Wrong)
	case !promised.Allowed && d.Reason != flows.PolicyEgress && d.Reason != flows.PolicyIngress:
		return fmt.Errorf("a policy should drop it (%s), but: arrived %t, %s %s", promised.Why, d.Arrived, d.Reason, d.Wrong)
	}
	return nil
}

// OffTheMap tells whether a packet is none that a Network can follow: a node that sends to another node's pods does so with its
// gateway's address, because its own network masquerades it.
func OffTheMap(c Cluster, p Packet) bool {
	for _, n := range c.Nodes {
		if !slices.Contains(n.Addrs, p.Src) {
			continue
		}
		for _, pod := range c.Pods {
			if pod.Node != n.Name && !pod.HostNetwork && slices.Contains(pod.Addrs, p.Dst) {
				return true
			}
		}
	}
	return false
}
