package tracetest

import (
	"fmt"
	"slices"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/policy"
)

// Expected is the verdict of the policies for a packet.
func Expected(view policy.Cluster, p Packet) policy.Verdict { return policy.Eval(view, ForEval(p)) }

// ForEval is a packet in the form that policy.Eval takes.
func ForEval(p Packet) policy.Packet {
	one := policy.Packet{Src: p.Src, Dst: p.Dst, Protocol: "ICMP", Translated: p.Src == p.Dst}
	for _, protocol := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP} {
		if protocol.Number() == p.Protocol {
			one.Protocol, one.Port = protocol, p.DstPort
		}
	}
	return one
}

// Check compares the observed result with the expected verdict: the packet arrived, or a policy dropped it.
func Check(expected policy.Verdict, d Delivery) error {
	switch {
	case expected.Allowed && !d.Arrived:
		return fmt.Errorf("expected to arrive (%s), observed: %s %s", expected.Why, d.Reason, d.Wrong)
	case !expected.Allowed && d.Reason != flows.PolicyEgress && d.Reason != flows.PolicyIngress:
		return fmt.Errorf("expected a policy to drop it (%s), observed: arrived %t, %s %s", expected.Why, d.Arrived, d.Reason,
			d.Wrong)
	}
	return nil
}

// Unroutable reports packets that a Network cannot follow: a node sends to other nodes' pods with its gateway's
// address, because the host masquerades.
func Unroutable(c Cluster, p Packet) bool {
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
