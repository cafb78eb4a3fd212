//go:build integration

package datapath

import (
	"net/netip"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// transportHeader is the length of the headers of UDP and of an echo request.
const transportHeader = 8

// sizes adds packets of sizes from 1,280 bytes to 9,000 to a server, at and around all limits: nothing may be lost in
// silence. From a pod all sizes arrive, in fragments where they may be, and what is too large and may not is refused by
// the pod's own kernel at once. From outside, where links have the underlay's whole MTU, a client hears of the smaller
// MTU of the path by an ICMP error, and its next packet arrives.
func (l *probeList) sizes(name string, pod, node netip.Addr, nodePort uint16) {
	mtu, ip := l.m.rowMTU(l.row), 20
	if !l.v4 {
		ip = 40
	}
	for _, size := range []int{1280, 1281, 1400, mtu - 1, mtu, mtu + 1, 1499, 1500, 1501, 2 * mtu, 4096, 8191, 9000} {
		ping := wire.Target{Name: name, Proto: wire.ICMP, Addr: pod, Size: size - ip - transportHeader}
		l.one("sizes", "client", ping, false, netip.Addr{})
		l.one("sizes", "node/node1", ping, false, netip.Addr{})
		ping.DontFragment = true
		l.one("sizes", "client", ping, false, netip.Addr{})
		l.probes[len(l.probes)-1].tooLarge = size > mtu
		datagram := wire.Target{Name: name, Proto: wire.UDP, Addr: node, Port: nodePort, Size: size - ip - transportHeader}
		l.one("sizes", "outside", datagram, false, netip.Addr{})
		l.probes[len(l.probes)-1].Timeout = time.Second
	}
}
