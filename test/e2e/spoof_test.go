//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// How often every forged frame is sent.
const spoofCount = 10

// Ports of forged datagrams: only the sniffers listen on targetPort.
const (
	sourcePort = 17009
	targetPort = 17010
)

var routerMAC = wire.MAC(model.RouterMAC)

// sniffer listens at a would-be victim.
type sniffer struct {
	where  string
	honest int // how many honest frames have to arrive
	*session
}

// sniffAt starts to listen on an interface where so many honest frames have to arrive.
func sniffAt(t *testing.T, p *pod, iface string, honest int) sniffer {
	t.Helper()
	s := p.start(t, "sniff", "--iface="+iface, "--await="+honestTag, fmt.Sprintf("--count=%d", honest))
	return sniffer{p.name + " " + iface, honest, s}
}

// acceptAt starts to count the datagrams that a host's kernel accepts for targetPort.
func acceptAt(t *testing.T, host *pod, honest int) sniffer {
	t.Helper()
	s := host.start(t, "sniff", fmt.Sprintf("--port=%d", targetPort), "--await="+honestTag, fmt.Sprintf("--count=%d",
		honest))
	return sniffer{host.name + " UDP", honest, s}
}

// station is a pod with its Ethernet address.
type station struct {
	*pod
	mac wire.MAC
}

func stationOf(t *testing.T, p *pod) station {
	t.Helper()
	mac, err := net.ParseMAC(p.link(t, "eth0").MAC)
	if err != nil {
		t.Fatal(err)
	}
	return station{p, wire.MAC(mac)}
}

// A pod that may send any frame it likes forges addresses of every layer. None of it arrives: not at a pod on its node,
// not one on another node, not the nodes. The switch counts every frame with its reason, and the victims' tables hold.
func TestSpoofing(t *testing.T) {
	pods, hosts := meshPods(t)
	attacker, near, far := stationOf(t, pods[0]), stationOf(t, pods[1]), stationOf(t, pods[2])
	here, there := env.nodes[0], env.nodes[1]
	sniffers := []sniffer{
		sniffAt(t, near.pod, "eth0", spoofCount), sniffAt(t, far.pod, "eth0", spoofCount),
		sniffAt(t, hosts[0], model.GatewayName, spoofCount), sniffAt(t, hosts[1], model.GatewayName, spoofCount),
		// What reaches the node's kernel by any way at all, be it past the switch.
		acceptAt(t, hosts[0], spoofCount), acceptAt(t, hosts[1], spoofCount),
	}
	a := wire.NewAttack(spoofCount)
	for _, f := range env.families {
		forgeIP(a, f, attacker, near, far, here, there)
		if f == v4 {
			forgeARP(a, attacker, near, here)
		} else {
			forgeND(a, attacker, near, here)
		}
	}
	before := dropsOf(t, here)
	sendAll(t, attacker.pod, a)
	sendHonest(t, attacker, near.addrs[0], far.addrs[0], here.gateway(familyOf(near.addrs[0])))
	sendHonest(t, far, there.gateway(familyOf(near.addrs[0])))
	wantNothingBut(t, a, sniffers)
	wantDrops(t, here, before, a.Reasons)

	// Had the forged advertisements been believed, these would go astray.
	reach(t, map[dialer][]wire.Target{near.pod: targetsOf(far.pod), far.pod: targetsOf(near.pod),
		hosts[0]: targetsOf(near.pod)})
}

// gateway is the node's own address among its pods.
func (n node) gateway(f family) netip.Addr { return n.cidr(f).Masked().Addr().Next() }

// cidr is the range of the node's pods; it is invalid when there is none of the family.
func (n node) cidr(f family) netip.Prefix {
	for _, cidr := range n.podCIDRs {
		if familyOf(cidr.Addr()) == f {
			return cidr
		}
	}
	return netip.Prefix{}
}

func forgeIP(a *wire.Attack, f family, attacker, near, far station, here, there node) {
	own, nearAddr, farAddr := f.of(attacker.addrs), f.of(near.addrs), f.of(far.addrs)
	gateway := here.gateway(f)
	beyond := f.of(env.record.Outside.Addrs)
	type victim struct {
		name string
		addr netip.Addr
	}
	victims := []victim{{"a pod on this node", nearAddr}, {"a pod on another node", farAddr}, {"this node", gateway},
		{"another node", f.of(there.addrs)}}
	for _, v := range victims {
		to := netip.AddrPortFrom(v.addr, targetPort)
		for _, source := range []struct {
			name string
			addr netip.Addr
		}{
			{"an unused address of this node", lastAddr(here.cidr(f))}, {"an address of another node's range",
				lastAddr(there.cidr(f))},
			{"a pod on this node", nearAddr}, {"a pod on another node", farAddr}, {"the node's gateway", gateway}, {
				"a host outside", beyond},
		} {
			if source.addr == v.addr {
				continue // a packet to itself
			}
			label := fmt.Sprintf("%s from %s to %s", f, source.name, v.name)
			a.Frame("spoofed-ip", label, func(mark []byte) []byte {
				return wire.UDPFrame(routerMAC, attacker.mac, netip.AddrPortFrom(source.addr, sourcePort), to, mark)
			})
		}
		for _, mac := range []struct {
			name string
			addr wire.MAC
		}{{"a neighbour's MAC", near.mac}, {"the router's MAC", routerMAC}, {"an unknown MAC", wire.MAC{2, 0, 0, 0, 0, 1}}} {
			label := fmt.Sprintf("%s from %s and the right address to %s", f, mac.name, v.name)
			a.Frame("spoofed-mac", label, func(mark []byte) []byte {
				return wire.UDPFrame(routerMAC, mac.addr, netip.AddrPortFrom(own, sourcePort), to, mark)
			})
		}
	}
	a.Frame("spoofed-ip", fmt.Sprintf("%s straight to a neighbour's MAC", f), func(mark []byte) []byte {
		return wire.UDPFrame(near.mac, attacker.mac, netip.AddrPortFrom(farAddr, sourcePort), netip.AddrPortFrom(nearAddr,
			targetPort), mark)
	})
	a.Frame("spoofed-mac", fmt.Sprintf("%s as the neighbour itself, MAC and address", f), func(mark []byte) []byte {
		return wire.UDPFrame(routerMAC, near.mac, netip.AddrPortFrom(nearAddr, sourcePort), netip.AddrPortFrom(farAddr,
			targetPort), mark)
	})
}

func forgeARP(a *wire.Attack, attacker, near station, here node) {
	own, nearAddr := v4.of(attacker.addrs), v4.of(near.addrs)
	gateway := here.gateway(v4)
	const reason = "spoofed-arp"
	for _, to := range []struct {
		name string
		mac  wire.MAC
	}{{"everybody", wire.BroadcastMAC}, {"a neighbour", near.mac}} {
		for _, lie := range []struct {
			name string
			addr netip.Addr
		}{{"a neighbour's address", nearAddr}, {"the gateway's address", gateway}} {
			a.Frame(reason, fmt.Sprintf("ARP reply that claims %s to %s", lie.name, to.name), func(mark []byte) []byte {
				return wire.ARPFrame(to.mac, attacker.mac, wire.ARPReply, attacker.mac, lie.addr, near.mac, nearAddr, mark)
			})
			a.Frame(reason, fmt.Sprintf("ARP request that claims %s to %s", lie.name, to.name), func(mark []byte) []byte {
				return wire.ARPFrame(to.mac, attacker.mac, wire.ARPRequest, attacker.mac, lie.addr, wire.MAC{}, lie.addr, mark)
			})
		}
		a.Frame(reason, "ARP request with a neighbour's MAC as its sender to "+to.name, func(mark []byte) []byte {
			return wire.ARPFrame(to.mac, attacker.mac, wire.ARPRequest, near.mac, own, wire.MAC{}, gateway, mark)
		})
		a.Frame(reason, "ARP request from a neighbour's Ethernet address to "+to.name, func(mark []byte) []byte {
			return wire.ARPFrame(to.mac, near.mac, wire.ARPRequest, attacker.mac, own, wire.MAC{}, gateway, mark)
		})
	}
}

func forgeND(a *wire.Attack, attacker, near station, here node) {
	nearAddr := v6.of(near.addrs)
	gateway := here.gateway(v6)
	linkLocal, allNodes := netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("ff02::1")
	const reason = "spoofed-nd"
	for _, to := range []struct {
		name string
		mac  wire.MAC
		addr netip.Addr
	}{{"all nodes", wire.MAC{0x33, 0x33, 0, 0, 0, 1}, allNodes}, {"a neighbour", near.mac, nearAddr}} {
		for _, lie := range []struct {
			name string
			addr netip.Addr
		}{{"a neighbour's address", nearAddr}, {"the gateway's address", gateway}} {
			a.Frame(reason, fmt.Sprintf("neighbour advertisement that claims %s to %s", lie.name, to.name),
				func(mark []byte) []byte {
					return wire.NAFrame(to.mac, attacker.mac, linkLocal, to.addr, lie.addr, attacker.mac, mark)
				})
		}
		a.Frame(reason, "router advertisement to "+to.name, func(mark []byte) []byte {
			return wire.RAFrame(to.mac, attacker.mac, linkLocal, to.addr, attacker.mac, mark)
		})
	}
}

// lastAddr is an address of the range that no pod has yet: the last but one, which leaves out IPv4's broadcast address.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8-1; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// spoofer sends an attack's frames: a pod, or the host outside.
type spoofer interface {
	probe(ctx context.Context, request, reply any, args ...string) error
}

func sendAll(t *testing.T, from spoofer, a *wire.Attack) {
	t.Helper()
	var reply wire.SpoofReply
	if err := from.probe(t.Context(), a.Request, &reply, "spoof"); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, sent := range reply.Sent {
		total += sent
	}
	if want := spoofCount * (len(a.Request.Frames) + len(a.Request.Datagrams)); total != want {
		t.Fatalf("sent %d forged frames, want %d", total, want)
	}
	t.Logf("sent %d forged frames of %d kinds", total, len(a.Labels))
}

// honestTag marks the frames that have to arrive: they prove that the sniffers hear.
const honestTag = "legit"

// sendHonest sends frames that carry the pod's true addresses to each address.
func sendHonest(t *testing.T, from station, to ...netip.Addr) {
	t.Helper()
	request := wire.SpoofRequest{Iface: "eth0", Count: spoofCount}
	for _, addr := range to {
		src := netip.AddrPortFrom(familyOf(addr).of(from.addrs), sourcePort)
		request.Frames = append(request.Frames, wire.LabelledFrame{
			Label: "honest", Data: wire.UDPFrame(routerMAC, from.mac, src, netip.AddrPortFrom(addr, targetPort),
				wire.Mark(honestTag))})
	}
	var reply wire.SpoofReply
	if err := from.probe(t.Context(), request, &reply, "spoof"); err != nil {
		t.Fatal(err)
	}
}

// wantNothingBut ends the sniffers and fails the test for every forged frame that one of them saw, and when not all the
// honest ones arrived. Those were sent last, so nothing that was sent before is still on its way.
func wantNothingBut(t *testing.T, a *wire.Attack, sniffers []sniffer) {
	t.Helper()
	for _, s := range sniffers {
		var seen wire.SniffReply
		s.stop(t, &seen)
		var through []string
		for tag, n := range seen.Seen {
			if tag != honestTag {
				through = append(through, fmt.Sprintf("%d × %s", n, a.Labels[tag]))
			}
		}
		sort.Strings(through)
		if len(through) > 0 {
			t.Errorf("%s received forged frames:\n  %s", s.where, strings.Join(through, "\n  "))
		}
		// Without tunnels, honest frames between pods pass the gateways of the nodes, too.
		if seen.Seen[honestTag] < s.honest {
			t.Errorf("%s received %d honest frames (of %d frames in all), want %d or more: the sniffer proves nothing", s.where,
				seen.Seen[honestTag], seen.Frames, s.honest)
		}
	}
}

func dropsOf(t *testing.T, n node) map[string]uint64 {
	t.Helper()
	s, err := n.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.drops()
}

// wantDrops waits until the node has counted at least these drops since before; the switch updates its counters once or
// twice a second.
func wantDrops(t *testing.T, n node, before, want map[string]uint64) {
	t.Helper()
	counted := map[string]uint64{}
	err := testenv.Poll(t.Context(), 15*time.Second, func(ctx context.Context) error {
		s, err := n.status(ctx)
		if err != nil {
			return err
		}
		var missing []string
		for reason, packets := range want {
			counted[reason] = s.drops()[reason] - before[reason]
			if counted[reason] < packets {
				missing = append(missing, fmt.Sprintf("%s: %d of %d", reason, counted[reason], packets))
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("weftctl status on %s has not counted these drops: %s", n.name, strings.Join(missing, ", "))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("dropped on %s: %v", n.name, counted)
}
