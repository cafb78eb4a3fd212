//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/podns"
)

// What no policy forbids: an isolated pod and its own node reach each other, as kubelet's probes have to; it reaches
// itself, and through its Service, too; whom it may ask may answer; an ICMP error about what it sent reaches it. Other
// nodes are not its own.
func TestPolicyAlwaysAllowed(t *testing.T) {
	const ns = "always"
	w := upWalled(t, "polalw", map[string]string{"f.yaml": walledPod(ns, "closed", "node1", "app: closed") + walledPod(ns,
		"asker", "node1", "app: asker") + walledPod(ns, "server", "node2", "app: server") +
		strings.ReplaceAll(walledPod(ns, "host-1", "node1", "app: host")+walledPod(ns, "host-2", "node2", "app: host"),
			"spec: {", "spec: {hostNetwork: true, ") +
		walledService(ns, "closed", "app: closed", 8080) + walledService(ns, "server", "app: server",
		8080) + walledService(ns, "shut", "app: server", 7) +
		policyManifest(ns, "closed", "podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress, Egress]") +
		policyManifest(ns, "asker",
			"podSelector: {matchLabels: {app: asker}}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: "+
				"{matchLabels: {app: server}}}, {ipBlock: {cidr: 172.31.0.2/32}}, {ipBlock: {cidr: 'fd57:6566:7461::2/128'}}]}]") +
		policyManifest(ns, "server",
			"podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: "+
				"{matchLabels: {app: asker}}}]}]")})
	closed, asker, server := w.pod(t, "closed"), w.pod(t, "asker"), w.pod(t, "server")
	node1, node2 := w.host(t, "node1"), w.host(t, "node2")
	own, theirs := w.serviceIPs(t, ns, "closed"), w.serviceIPs(t, ns, "server")
	type way struct {
		from *client
		to   netip.AddrPort
		want podns.Outcome
	}
	var ways []way
	for _, v4 := range []bool{true, false} {
		at := func(addrs []netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(of(addrs, v4), port) }
		ways = append(ways,
			way{node1, at(closed.ips, 8080), podns.Answered}, way{node2, at(closed.ips, 8080), podns.Silent},
			way{closed, at(node1.ips, 8080), podns.Answered}, way{closed, at(node2.ips, 8080), podns.Silent},
			way{closed, at(closed.ips, 8080), podns.Answered}, way{closed, at(own, 80), podns.Answered},
			way{node1, at(own, 80), podns.Answered}, way{asker, at(own, 80), podns.Silent},
			way{asker, at(server.ips, 8080), podns.Answered}, way{asker, at(theirs, 80), podns.Answered}, way{server,
				at(asker.ips, 8080), podns.Silent},
			way{closed, at(server.ips, 8080), podns.Silent}, way{asker, at(closed.ips, 8080), podns.Silent})
	}
	var group sync.WaitGroup
	for _, way := range ways {
		for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
			patience := 5 * time.Second
			if way.want == podns.Silent {
				patience = time.Second
			}
			group.Go(func() {
				if answer, err := way.from.outcome(proto, way.to, patience); err != nil || answer.Outcome != way.want {
					t.Errorf("%s to %s/%s: %s (%s, %v), want %s", way.from.name, way.to, proto, answer.Outcome, answer.Detail, err,
						way.want)
				}
			})
		}
	}
	group.Wait()
	t.Run("ICMP errors", func(t *testing.T) { w.icmpErrors(t, asker, server, w.serviceIPs(t, ns, "shut")) })
}

// icmpErrors: an isolated client learns that a port is closed, at the pod and through a Service, and how large its
// packets may be.
func (w *walled) icmpErrors(t *testing.T, asker, server *client, shut []netip.Addr) {
	for _, v4 := range []bool{true, false} {
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(server.addr(v4), 7), netip.AddrPortFrom(of(shut, v4), 80)} {
			if answer, err := asker.outcome(podns.UDP, to, 5*time.Second); err != nil || answer.Outcome != podns.Refused {
				t.Errorf("UDP from %s to the closed port %s: %s, %v; want an error that says so", asker.name, to, answer.Outcome,
					err)
			}
		}
	}
	const narrow = 1300
	outside := w.Status().Outside.Addrs
	for _, v4 := range []bool{true, false} {
		addr := of(outside, v4)
		bits := map[bool]string{true: "/32", false: "/128"}[v4]
		dev := strings.Fields(strings.SplitN(w.Run("node/node1", "ip", "route", "get", addr.String()), " dev ", 2)[1])[0]
		w.Run("node/node1", "ip", "route", "replace", addr.String()+bits, "dev", dev, "mtu", "lock", fmt.Sprint(narrow))
		network, level, option, discover, value := "udp4", unix.IPPROTO_IP, unix.IP_MTU, unix.IP_MTU_DISCOVER,
			unix.IP_PMTUDISC_DO
		if !v4 {
			network, level, option, discover, value = "udp6", unix.IPPROTO_IPV6, unix.IPV6_MTU, unix.IPV6_MTU_DISCOVER,
				unix.IPV6_PMTUDISC_DO
		}
		var conn *net.UDPConn
		if err := asker.ns.Do(func() (err error) {
			conn, err = net.DialUDP(network, nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 9)))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		control := func(f func(fd int) error) {
			t.Helper()
			var failed error
			err := raw.Control(func(fd uintptr) { failed = f(int(fd)) })
			if err := errors.Join(err, failed); err != nil {
				t.Fatal(err)
			}
		}
		control(func(fd int) error { return unix.SetsockoptInt(fd, level, discover, value) })
		testenv.Eventually(t, 5*time.Second, func() error {
			if _, err := conn.Write(make([]byte, 1350)); err != nil && !errors.Is(err, syscall.EMSGSIZE) &&
				!errors.Is(err, syscall.ECONNREFUSED) {
				return err
			}
			mtu := 0
			control(func(fd int) (err error) { mtu, err = unix.GetsockoptInt(fd, level, option); return err })
			if mtu != narrow {
				return fmt.Errorf("%s believes that packets to %s may have %d bytes, want %d", asker.name, addr, mtu, narrow)
			}
			return nil
		})
		_ = conn.Close()
	}
}

// A policy that cannot be understood closes its pods, in what it is about, and says so: in the agent's status, among
// the policies, in an Event. Mended, it is what it says.
func TestPolicyThatCannotBeUnderstood(t *testing.T) {
	const ns = "bad"
	// The API has an IPv4 range in IPv6's clothes, which the lab lets pass, and this one is wider than all of IPv4.
	policy := func(cidr string) string {
		return policyManifest(ns, "wrong",
			fmt.Sprintf("podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {}}]}, {from: [{ipBlock: "+
				"{cidr: '%s'}}]}]", cidr))
	}
	w := upWalled(t, "polbad", map[string]string{"pods.yaml": walledPod(ns, "server", "node1", "app: server") +
		walledPod(ns, "near", "node1", "app: x") + walledPod(ns, "far", "node2", "app: x")})
	near, far, server := w.pod(t, "near"), w.pod(t, "far"), w.pod(t, "server")
	b := beats(t, server, near, far)
	for _, one := range b {
		one.opens(t, "without a policy", time.Now())
	}
	edit := w.write(t, "policy.yaml", policy("::ffff:0.0.0.0/80"))
	for _, one := range b {
		one.closes(t, "a policy that cannot be understood", edit)
	}
	testenv.Eventually(t, 10*time.Second, func() error {
		policies := w.policies(t, "node1")
		if len(policies) != 1 || policies[0].Problem == "" {
			return fmt.Errorf("the agent says of its policies: %+v", policies)
		}
		status := w.status(t, "node1")
		if status.Flows.Quarantined["policy/bad/wrong"] == "" {
			return fmt.Errorf("the agent's status has in quarantine: %v", status.Flows.Quarantined)
		}
		for _, e := range w.Status().Events {
			if strings.Contains(e, "NetworkPolicy/wrong") {
				t.Logf("reported: %s; %s", e, policies[0].Problem)
				return nil
			}
		}
		return fmt.Errorf("no Event about the policy: %v", w.Status().Events)
	})
	edit = w.write(t, "policy.yaml", policy("::ffff:10.0.0.0/104"))
	for _, one := range b {
		one.opens(t, "it is mended", edit)
	}
	testenv.Eventually(t, testenv.Patience(10*time.Second), func() error {
		status := w.status(t, "node1")
		if len(status.Flows.Quarantined) > 0 {
			return fmt.Errorf("the agent's status has in quarantine: %v", status.Flows.Quarantined)
		}
		return nil
	})
}
