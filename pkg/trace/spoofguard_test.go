package trace_test

import (
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/trace"
)

// guarded are packets of a pod, with its own MAC and addresses, and the reason of their drop. A packet without a reason
// leaves at a port. The integration test sends them through a real switch.
var guarded = func() (list []guardedPacket) {
	const from, group = "in_port=16,dl_src=0a:58:0a:00:01:02,dl_dst=", "01:00:5e:00:00:fb"
	router := model.RouterMAC.String()
	for _, family := range []struct{ ip, tcp, own, pod, away, groupMAC, loopback, groups, near string }{
		{"udp,nw_src=10.0.1.2,nw_dst=", "tcp,nw_src=10.0.1.2,nw_dst=", "10.0.1.2", "10.0.1.3", "198.51.100.7", group,
			"127.0.0.1", "224.0.0.251", "128.0.0.1"},
		{"udp6,ipv6_src=fd00:1::2,ipv6_dst=", "tcp6,ipv6_src=fd00:1::2,ipv6_dst=", "fd00:1::2", "fd00:1::3", "2001:db8::7",
			"33:33:00:00:00:fb", "::1", "ff02::fb", "::2"},
	} {
		to := func(reason flows.Reason, mac, dst string) {
			list = append(list, guardedPacket{from + mac + "," + family.ip + dst, reason},
				guardedPacket{from + mac + "," + family.tcp + dst, reason},
				guardedPacket{from + mac + ",vlan_tci=0x1005," + family.ip + dst, flows.Tagged})
		}
		to(flows.Loopback, router, family.loopback)
		to(flows.Multicast, router, family.groups)
		to(flows.Multicast, family.groupMAC, family.groups)
		to("", router, family.pod)
		to("", router, family.away)
		to("", router, family.near) // not in the loopback range
	}
	for dst, reason := range map[string]flows.Reason{
		"127.255.255.254": flows.Loopback, "127.0.0.53": flows.Loopback, "224.0.0.1": flows.Multicast,
		"239.255.255.250": flows.Multicast,
		"255.255.255.255": flows.Multicast, "223.255.255.255": "", "126.255.255.255": "", "255.255.255.254": "",
	} {
		list = append(list, guardedPacket{from + router + ",udp,nw_src=10.0.1.2,nw_dst=" + dst, reason})
	}
	for dst, reason := range map[string]flows.Reason{"ff0e::1": flows.Multicast, "ff02::1": flows.Multicast,
		"fe00::1": ""} {
		list = append(list, guardedPacket{from + router + ",udp6,ipv6_src=fd00:1::2,ipv6_dst=" + dst, reason})
	}
	// Address resolution works with any destination MAC.
	const ask = ",ipv6_src=fd00:1::2,ipv6_dst=ff02::1:ff00:1,icmpv6_type=135,icmpv6_code=0,nd_target=fd00:1::1,nd_sll=0a:58:0a:00:01:02"
	return append(list,
		guardedPacket{from + "ff:ff:ff:ff:ff:ff,arp,arp_op=1,arp_spa=10.0.1.2,arp_tpa=10.0.1.1,arp_sha=0a:58:0a:00:01:02",
			""},
		guardedPacket{from + "33:33:ff:00:00:01,icmp6" + ask, ""}, guardedPacket{from + router + ",icmp6" + ask, ""})
}()

type guardedPacket struct {
	packet string
	reason flows.Reason
}

// guardedFlows are the flows of a node with two dual-stack pods.
func guardedFlows(t testing.TB, kernel bool) flows.Desired {
	t.Helper()
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	s := &model.Snapshot{
		Self: model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.11")},
			PodCIDRs: []netip.Prefix{prefix("10.0.1.0/24"), prefix("fd00:1::/64")}},
		Transport: model.Tunnel(model.Geneve), KernelDatapath: kernel,
		Attachments: map[model.AttachmentKey]model.Attachment{},
	}
	for i, ips := range [][]netip.Addr{{addr("10.0.1.2"), addr("fd00:1::2")}, {addr("10.0.1.3"), addr("fd00:1::3")}} {
		a := model.Attachment{ContainerID: ips[0].String(), IfName: "eth0",
			Pod: model.PodRef{Namespace: "a", Name: ips[0].String()}, OFPort: 16 + uint32(i),
			MAC: model.MAC{0x0a, 0x58, 10, 0, 1, byte(2 + i)}, IPs: ips}
		s.Attachments[a.Key()] = a
	}
	desired, err := flows.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	return desired
}

// TestSpoofGuard: packets that no pod may send, to any destination MAC: to the loopback ranges, to multicast and
// broadcast addresses, and frames with a VLAN tag.
func TestSpoofGuard(t *testing.T) {
	for _, kernel := range []bool{false, true} {
		sw, err := trace.Of(guardedFlows(t, kernel))
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range guarded {
			r := sw.Run(packet(t, g.packet), trace.Options{States: []string{"trk,new", "trk,new"}, Steps: true})
			if r.Reason() != g.reason || r.Dropped() != (g.reason != "") {
				t.Errorf("kernel %t: %s is dropped for %q, want %q:\n%s", kernel, g.packet, r.Reason(), g.reason, r)
			}
		}
	}
}
