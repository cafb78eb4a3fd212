//go:build integration

package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/podns"
)

// addLocal gives a node an address at run time, as NodeLocal DNSCache does.
func (c *client) addLocal(t *testing.T, addr netip.Addr) {
	t.Helper()
	if err := c.ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		// Without IFA_F_NODAD the kernel makes an IPv6 address usable a moment after it has said yes, on lo, too.
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(),
			addr.BitLen())}, Flags: unix.IFA_F_NODAD})
	}); err != nil {
		t.Fatalf("add address %s to %s: %v", addr, c.name, err)
	}
}

// TestNodeAddresses: an isolated pod and its node reach each other at all addresses of the node, also those that come
// while the agent runs: a second network card's, and NodeLocal DNSCache's link-local one. The ClusterIP of a Service
// that this node serves is the Service's although the node has it; that of another proxy's Service is the node's.
func TestNodeAddresses(t *testing.T) {
	const ns = "nodeaddr"
	other := strings.Replace(walledService(ns, "other", "app: server", 8080), "name: other",
		"name: other, labels: {service.kubernetes.io/service-proxy-name: mine}", 1)
	w := upWalled(t, "nodeaddr", map[string]string{"f.yaml": walledPod(ns, "closed", "node1", "app: closed") +
		walledPod(ns, "open", "node1", "app: open") +
		walledPod(ns, "far", "node2", "app: closed") + walledPod(ns, "server", "node2", "app: server") +
		strings.ReplaceAll(walledPod(ns, "host-1", "node1", "app: host"), "spec: {", "spec: {hostNetwork: true, ") +
		walledService(ns, "dns", "app: server", 8080) + other +
		policyManifest(ns, "closed", "podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress, Egress]")})
	closed, open, far, node1 := w.pod(t, "closed"), w.pod(t, "open"), w.pod(t, "far"), w.host(t, "node1")
	dns, proxied := w.serviceIPs(t, ns, "dns"), w.serviceIPs(t, ns, "other")
	expect := func(from *client, to netip.AddrPort, want podns.Outcome) {
		t.Helper()
		for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
			patience := time.Second
			if want == podns.Answered {
				patience = 5 * time.Second
			}
			if answer, err := from.outcome(proto, to, patience); err != nil || answer.Outcome != want {
				t.Errorf("%s to %s/%s: %s (%s, %v), want %s", from.name, to, proto, answer.Outcome, answer.Detail, err, want)
			}
		}
	}
	at := netip.AddrPortFrom
	expect(open, at(of(proxied, true), 8080), podns.Silent) // the proxy does not take it, and nothing sends it round
	locals := []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("192.0.2.10"),
		netip.MustParseAddr("fd00:53::10")}
	for _, addr := range locals {
		node1.addLocal(t, addr)
	}
	for _, v4 := range []bool{true, false} {
		node1.addLocal(t, of(dns, v4))
		node1.addLocal(t, of(proxied, v4))
	}
	for _, addr := range append([]netip.Addr{of(proxied, true), of(proxied, false)}, locals...) {
		testenv.Eventually(t, 10*time.Second, func() error {
			answer, err := closed.outcome(podns.TCP, at(addr, 8080), time.Second)
			if err == nil && answer.Outcome != podns.Answered {
				err = fmt.Errorf("%s to %s: %s", closed.name, addr, answer.Outcome)
			}
			return err
		})
		expect(closed, at(addr, 8080), podns.Answered)
		expect(open, at(addr, 8080), podns.Answered)
	}
	for _, addr := range locals { // the other way
		to := at(closed.addr(addr.Is4()), 8080)
		if err := node1.ns.Do(func() error {
			dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(at(addr, 0))}
			conn, err := dialer.DialContext(t.Context(), "tcp", to.String())
			if err == nil {
				err = conn.Close()
			}
			return err
		}); err != nil {
			t.Errorf("the node from %s to %s: %v", addr, to, err)
		}
	}
	for _, v4 := range []bool{true, false} {
		expect(open, at(of(dns, v4), 80), podns.Answered) // by its endpoint: the node has nothing at this port
		expect(closed, at(of(dns, v4), 80), podns.Silent)
		expect(open, at(of(dns, v4), 8080), podns.Refused)
		expect(node1, at(of(dns, v4), 8080), podns.Answered)
		expect(far, at(of(proxied, v4), 8080), podns.Silent) // another node's
	}
}
