package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
)

func node(podCIDRs, addrs []string) *corev1.Node {
	n := &corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: podCIDRs}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: "10.0.0.9"})
	return n
}

func TestDesiredRoutes(t *testing.T) {
	got := desiredRoutes([]*corev1.Node{
		node([]string{"10.244.0.0/24", "fd10:244::/64"}, []string{"172.30.0.11", "fd57:6566:74::b"}),
		node([]string{"10.244.1.0/24", "fd10:244:0:1::/64"}, []string{"172.30.0.12"}), // no address of that family yet
		node(nil, []string{"172.30.0.13"}),                                            // no pod CIDR yet
		node([]string{"10.244.3.0/33"}, []string{"172.30.0.14"}),
	})
	want := map[netip.Prefix]netip.Addr{
		netip.MustParsePrefix("10.244.0.0/24"): netip.MustParseAddr("172.30.0.11"),
		netip.MustParsePrefix("fd10:244::/64"): netip.MustParseAddr("fd57:6566:74::b"),
		netip.MustParsePrefix("10.244.1.0/24"): netip.MustParseAddr("172.30.0.12"),
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" {
		t.Errorf("routes (-want +got):\n%s", d)
	}
}
