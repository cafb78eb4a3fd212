//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// The ports that tunnels end at (RFC 8926, RFC 7348).
const (
	genevePort = 6081
	vxlanPort  = 4789
	grePort    = 0 // GRE has an IP protocol of its own (wire.LabelledDatagram)
)

// encapsulations are the tunnels that every node receives, whichever it sends with.
var encapsulations = []struct {
	name string
	port uint16
	wrap func(vni uint32, inner []byte) []byte
}{
	{"Geneve", genevePort, wire.Geneve},
	{"VXLAN", vxlanPort, wire.VXLAN},
	{"GRE", grePort, wire.GRE},
}

// Encapsulated packets that were not made by the node that owns their inner source reach no pod: not from outside the
// cluster, not from another node, not from a pod whose packets leave with its node's address.
func TestTunnelSpoofing(t *testing.T) {
	pods, hosts := meshPods(t)
	victim := stationOf(t, pods[0])
	here := env.nodes[0]

	t.Run("from outside", func(t *testing.T) {
		a := wire.NewAttack(spoofCount)
		for _, f := range env.families {
			forgeTunnels(a, "tunnel-source", f, victim, map[string]netip.Addr{
				"a pod on another node": f.of(pods[2].addrs), "a pod on this node": f.of(pods[1].addrs), "the host outside": f.of(
					env.record.Outside.Addrs)})
		}
		tunnelAttack(t, outside{}, a, victim, here)
	})
	t.Run("from another node, in a third one's name", func(t *testing.T) {
		a := wire.NewAttack(spoofCount)
		for _, f := range env.families {
			forgeTunnels(a, "tunnel-source", f, victim, map[string]netip.Addr{"a pod on a third node": f.of(pods[4].addrs),
				"a pod on this node": f.of(pods[1].addrs)})
		}
		tunnelAttack(t, hosts[1], a, victim, here)
	})
	// The positive control: the same packets, but true. They show that the forged ones were well made.
	t.Run("a node's own are received", func(t *testing.T) {
		s := sniffAt(t, victim.pod, "eth0", spoofCount)
		a := wire.NewAttack(spoofCount)
		for _, f := range env.families {
			forgeTunnels(a, "tunnel-source", f, victim, map[string]netip.Addr{"a pod on the sending node": f.of(pods[2].addrs)})
		}
		sendAll(t, hosts[1], a)
		sendHonest(t, stationOf(t, pods[2]), victim.addrs[0])
		var seen wire.SniffReply
		s.stop(t, &seen)
		for tag, label := range a.Labels {
			if seen.Seen[tag] != spoofCount {
				t.Errorf("%s: received %d of %d", label, seen.Seen[tag], spoofCount)
			}
		}
	})
	// A pod's packets to another node leave with its own node's address, from which that node accepts tunnels. If a pod
	// could send to the tunnel port, it could speak in the name of every pod on its node.
	t.Run("from a pod, in its neighbour's name", func(t *testing.T) {
		a := wire.NewAttack(spoofCount)
		for _, f := range env.families {
			forgeTunnels(a, "tunnel-port", f, victim, map[string]netip.Addr{"the sender's neighbour": f.of(pods[3].addrs)})
		}
		tunnelAttack(t, pods[2], a, victim, env.nodes[1])
	})
	t.Run("from a pod to its own node", func(t *testing.T) {
		a := wire.NewAttack(spoofCount)
		for _, f := range env.families {
			forgeTunnels(a, "tunnel-port", f, victim, map[string]netip.Addr{"a pod on another node": f.of(pods[2].addrs)})
		}
		tunnelAttack(t, pods[1], a, victim, here)
	})
}

// forgeTunnels adds packets of every encapsulation for the victim, with these inner sources, to be sent to the victim's
// node. The reason is why they have to be dropped.
func forgeTunnels(a *wire.Attack, reason string, f family, victim station, sources map[string]netip.Addr) {
	end := nodeNamed(victim.node).addrs[0]
	to := netip.AddrPortFrom(f.of(victim.addrs), targetPort)
	for _, e := range encapsulations {
		for name, source := range sources {
			label := fmt.Sprintf("%s in %s from %s", f, e.name, name)
			a.Datagram(reason, label, netip.AddrPortFrom(end, e.port), func(mark []byte) []byte {
				return e.wrap(0, wire.UDPFrame(routerMAC, routerMAC, netip.AddrPortFrom(source, sourcePort), to, mark))
			})
		}
	}
}

// tunnelAttack sends the packets. Neither the victim nor its node may get them, and the node at counts them.
func tunnelAttack(t *testing.T, from spoofer, a *wire.Attack, victim station, at node) {
	t.Helper()
	pods, hosts := meshPods(t)
	sniffers := []sniffer{sniffAt(t, victim.pod, "eth0", spoofCount), sniffAt(t, hosts[0], model.GatewayName, spoofCount),
		acceptAt(t, hosts[0], spoofCount)}
	before := dropsOf(t, at)
	sendAll(t, from, a)
	sendHonest(t, stationOf(t, pods[2]), victim.addrs[0])
	sendHonest(t, victim, nodeNamed(victim.node).gateway(familyOf(victim.addrs[0])))
	wantNothingBut(t, a, sniffers)
	wantDrops(t, at, before, a.Reasons)
}
