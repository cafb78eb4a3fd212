//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab"
)

const (
	// spoofCount is how often every forged frame is sent.
	spoofCount = 10
	// Only the sniffers listen on targetPort.
	sourcePort, targetPort = 17009, 17010
	// honestTag marks the frames that have to arrive: they prove that the sniffers hear.
	honestTag = "legit"
)

var router = wire.MAC(model.RouterMAC)

func (m mesh) mac(t *testing.T, pod string) wire.MAC {
	t.Helper()
	mac, err := model.ParseMAC(m.Run(pod, "cat", "/sys/class/net/eth0/address"))
	if err != nil {
		t.Fatal(err)
	}
	return wire.MAC(mac)
}

// destinations are what no router passes on, and why the switch drops it.
var destinations = map[string]string{"127.0.0.1": "loopback", "127.1.2.3": "loopback", "::1": "loopback",
	"224.0.0.251": "multicast",
	"239.1.2.3":   "multicast", "255.255.255.255": "multicast", "ff02::1": "multicast", "ff0e::1": "multicast"}

// tagged puts a VLAN's tag into a frame.
func tagged(frame []byte) []byte { return slices.Insert(frame, 12, 0x81, 0x00, 0x00, 0x05) }

// A pod forges addresses of every layer; none of it is received, and the switch counts each frame with its reason.
func TestSpoofing(t *testing.T) {
	m := up(t, lab.Dual, model.Geneve)
	a := wire.NewAttack(spoofCount)
	attacker, neighbour := m.mac(t, "a-node1"), m.mac(t, "b-node1")
	for _, v4 := range []bool{true, false} {
		own, near, far := of(m.pods["a-node1"].IPs, v4), of(m.pods["b-node1"].IPs, v4), of(m.pods["a-node2"].IPs, v4)
		gateway := model.GatewayAddr(m.cidr("node1", v4))
		for name, victim := range map[string]netip.Addr{"a neighbour": near, "a pod on another node": far,
			"its node": gateway} {
			to := netip.AddrPortFrom(victim, targetPort)
			for who, source := range map[string]netip.Addr{"the neighbour": near, "a pod on another node": far,
				"the node": gateway, "another node": of(m.nodes["node2"].Addrs, v4)} {
				if source == victim {
					continue
				}
				a.Frame("spoofed-ip", fmt.Sprintf("%s to %s in the name of %s", familyName(v4), name, who),
					func(mark []byte) []byte {
						return wire.UDPFrame(router, attacker, netip.AddrPortFrom(source, sourcePort), to, mark)
					})
			}
			for who, mac := range map[string]wire.MAC{"the neighbour": neighbour, "the router": router, "no host": {2, 0, 0, 0,
				0, 1}} {
				a.Frame("spoofed-mac", fmt.Sprintf("%s to %s with the MAC of %s", familyName(v4), name, who),
					func(mark []byte) []byte {
						return wire.UDPFrame(router, mac, netip.AddrPortFrom(own, sourcePort), to, mark)
					})
			}
			a.Frame("vlan-tag", fmt.Sprintf("%s to %s with a VLAN tag", familyName(v4), name), func(mark []byte) []byte {
				return tagged(wire.UDPFrame(router, attacker, netip.AddrPortFrom(own, sourcePort), to, mark))
			})
		}
		for dst, reason := range destinations {
			if dst := netip.MustParseAddr(dst); dst.Is4() == v4 {
				a.Frame(reason, fmt.Sprintf("to %s at the router's MAC", dst), func(mark []byte) []byte {
					return wire.UDPFrame(router, attacker, netip.AddrPortFrom(own, sourcePort), netip.AddrPortFrom(dst, targetPort),
						mark)
				})
			}
		}
		for name, lie := range map[string]netip.Addr{"a neighbour": near, "the gateway": gateway} {
			if !v4 {
				a.Frame("spoofed-nd", "neighbour advertisement as "+name, func(mark []byte) []byte {
					return wire.NAFrame(neighbour, attacker, netip.MustParseAddr("fe80::bad"), near, lie, attacker, mark)
				})
				continue
			}
			for kind, op := range map[string]wire.ARPOp{"request": wire.ARPRequest, "reply": wire.ARPReply} {
				a.Frame("spoofed-arp", fmt.Sprintf("ARP %s as %s", kind, name), func(mark []byte) []byte {
					return wire.ARPFrame(wire.BroadcastMAC, attacker, op, attacker, lie, wire.MAC{}, near, mark)
				})
			}
		}
	}
	a.Frame("spoofed-nd", "router advertisement", func(mark []byte) []byte {
		return wire.RAFrame(neighbour, attacker, netip.MustParseAddr("fe80::bad"), of(m.pods["b-node1"].IPs, false), attacker,
			mark)
	})
	m.attack(t, "a-node1", "node1", a)
	if r := m.Probe(); r.Counts[lab.Differs] > 0 {
		t.Errorf("after the attack: %v", r.Counts)
	}
}

func (m mesh) cidr(node string, v4 bool) netip.Prefix {
	for _, c := range m.nodes[node].PodCIDRs {
		if c.Addr().Is4() == v4 {
			return c
		}
	}
	return netip.Prefix{}
}

// Encapsulated packets reach no pod unless the node that owns their inner source made them.
func TestTunnelSpoofing(t *testing.T) {
	m := up(t, lab.IPv4, model.Geneve)
	wraps := map[model.Encapsulation]func(uint32, []byte) []byte{model.Geneve: wire.Geneve, model.VXLAN: wire.VXLAN,
		model.GRE: wire.GRE}
	forge := func(a *wire.Attack, reason, source string) {
		to := netip.AddrPortFrom(m.pods["b-node1"].IPs[0], targetPort)
		addrs := m.nodes[source].Addrs // of a node, or else of a pod
		if pod, ok := m.pods[source]; ok {
			addrs = pod.IPs
		}
		inner := addrs[0]
		for e, wrap := range wraps {
			a.Datagram(reason, fmt.Sprintf("%s in the name of %s", e, source),
				netip.AddrPortFrom(m.nodes["node1"].Addrs[0], e.UDPPort()), func(mark []byte) []byte {
					return wrap(0, wire.UDPFrame(router, router, netip.AddrPortFrom(inner, sourcePort), to, mark))
				})
		}
	}
	t.Run("from a node, in the name of another", func(t *testing.T) {
		a := wire.NewAttack(spoofCount)
		forge(a, "tunnel-source", "a-node3")
		forge(a, "tunnel-source", "a-node1")
		forge(a, "tunnel-source", "node3")
		forge(a, "tunnel-source", "node1")
		m.attack(t, "node/node2", "node1", a)
	})
	t.Run("from a pod", func(t *testing.T) {
		a := wire.NewAttack(spoofCount)
		forge(a, "tunnel-port", "b-node2")
		m.attack(t, "a-node2", "node2", a)
	})
	t.Run("the true ones arrive", func(t *testing.T) {
		a := wire.NewAttack(spoofCount)
		forge(a, "", "a-node2")
		forge(a, "", "node2")
		sniffer := m.sniff(t, "b-node1", "eth0")
		m.send(t, "node/node2", a.Request)
		m.honest(t)
		var seen wire.SniffReply
		sniffer.stop(t, &seen)
		for tag, label := range a.Labels {
			if seen.Seen[tag] != spoofCount {
				t.Errorf("%s: %d of %d arrived", label, seen.Seen[tag], spoofCount)
			}
		}
	})
}

// victims are where the sniffers listen.
var victims = []struct{ where, iface string }{{"b-node1", "eth0"}, {"a-node2", "eth0"},
	{"node/node1", model.GatewayName}, {"node/node2", model.GatewayName}}

func (m mesh) sniff(t *testing.T, where, iface string) *session {
	t.Helper()
	return m.start(t, where, "sniff", "--iface="+iface, "--await="+honestTag, fmt.Sprintf("--count=%d", spoofCount))
}

func (m mesh) send(t *testing.T, from string, request wire.SpoofRequest) {
	t.Helper()
	var reply wire.SpoofReply
	m.Ask(from, request, &reply, "spoof")
	total := 0
	for _, n := range reply.Sent {
		total += n
	}
	if want := request.Count * (len(request.Frames) + len(request.Datagrams)); total != want {
		t.Fatalf("sent %d forged packets, want %d", total, want)
	}
}

// honest sends true frames to every victim: from its own node's pods to the gateways, from b-node3 to the pods.
func (m mesh) honest(t *testing.T) {
	t.Helper()
	for from, targets := range map[string][]netip.Addr{
		"b-node3": {m.pods["b-node1"].IPs[0], m.pods["a-node2"].IPs[0]},
		"a-node1": {model.GatewayAddr(m.nodes["node1"].PodCIDRs[0])},
		"b-node2": {model.GatewayAddr(m.nodes["node2"].PodCIDRs[0])},
	} {
		request := wire.SpoofRequest{Iface: "eth0", Count: spoofCount}
		for _, to := range targets {
			request.Frames = append(request.Frames, wire.LabelledFrame{Label: "honest", Data: wire.UDPFrame(router,
				m.mac(t, from),
				netip.AddrPortFrom(m.pods[from].IPs[0], sourcePort), netip.AddrPortFrom(to, targetPort), wire.Mark(honestTag))})
		}
		m.send(t, from, request)
	}
}

// attack sends forged packets; none may arrive anywhere, and the node has to count them.
func (m mesh) attack(t *testing.T, from, at string, a *wire.Attack) {
	t.Helper()
	sniffers := map[string]*session{}
	for _, v := range victims {
		sniffers[v.where] = m.sniff(t, v.where, v.iface)
	}
	before := m.drops(t, at)
	m.send(t, from, a.Request)
	m.honest(t)
	for where, s := range sniffers {
		var seen wire.SniffReply
		s.stop(t, &seen)
		var through []string
		for tag, n := range seen.Seen {
			if tag != honestTag {
				through = append(through, fmt.Sprintf("%d × %s", n, a.Labels[tag]))
			}
		}
		if len(through) > 0 || seen.Seen[honestTag] != spoofCount {
			t.Errorf("%s: %d of %d honest frames, and forged ones: %s", where, seen.Seen[honestTag], spoofCount,
				strings.Join(through, "; "))
		}
	}
	testenv.Eventually(t, 15*time.Second, func() error {
		now := m.drops(t, at)
		for reason, want := range a.Reasons {
			if got := now[reason] - before[reason]; got < want {
				return fmt.Errorf("%s counts %d packets as %s, want %d", at, got, reason, want)
			}
		}
		return nil
	})
	t.Logf("%d packets of %d kinds: none arrived, all counted: %v", spoofCount*len(a.Labels), len(a.Labels), a.Reasons)
}
