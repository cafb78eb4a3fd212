package nodepath_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
)

// tunneling is a node that receives IPIP, and packets without a tunnel.
func tunneling(name, number, subnet string) model.Node {
	n := neighbor(name, number, subnet)
	n.ReceivesIPIP = true
	return n
}

// TestIPIP: what goes to a peer node in IPIP, by the settings, what both nodes publish, and the kernel's routes; and
// the reasons. Meanwhile it goes by Geneve.
func TestIPIP(t *testing.T) {
	near, far := tunneling("n2", "2", "172.30.0."), tunneling("n2", "2", "172.31.0.")
	silent, otherLength, noDirect := near, near, near
	silent.ReceivesIPIP, noDirect.ReceivesDirect = false, false
	otherLength.PodCIDRs = cidrs("10.244.2.0/25", "fd44:2::/64")
	all := near.PodCIDRs
	overlay, direct, hybrid, ipip := model.ModeOverlay, model.ModeDirect, model.ModeHybrid, model.ModeIPIP
	for _, tc := range []struct {
		name     string
		mode     model.Mode
		self     bool // this node publishes that it receives IPIP
		peer     model.Node
		routed   []netip.Prefix
		want     model.Mode // empty for unreachable
		receives bool
		route    model.Mode
		why      string
		mtu      int
	}{
		{"all is there", overlay, true, near, all, ipip, true, ipip, "", 1480},
		{"no device here", overlay, false, near, all, overlay, true, "", "this node does not publish that it receives packets in IPIP", 1450},
		{"no device there", overlay, true, silent, all, overlay, true, "", "node n2 does not publish that it receives packets in IPIP", 1450},
		{"no route", overlay, true, near, all[1:], overlay, true, ipip, "the node's kernel does not route 10.244.2.0/24 to it yet", 1450},
		{"pod CIDRs of two lengths", overlay, true, otherLength, all, overlay, false, "",
			"the pod CIDR 10.244.2.0/25 of node n2 has another length than this node's 10.244.1.0/24", 1450},
		{"hybrid, one subnet", hybrid, true, near, all, direct, true, direct, "", 1480},
		{"hybrid, two subnets", hybrid, true, far, all, ipip, true, ipip, "", 1480},
		{"direct, two subnets", direct, true, far, all, "", false, "", "", 1480},
		{"direct, not received", direct, true, noDirect, all, ipip, true, ipip, "", 1480},
	} {
		self := tunneling("n1", "1", "172.30.0.")
		self.ReceivesIPIP = tc.self
		s := snapshot(self, tc.peer)
		s.Transport, s.Routed = model.Transport{Mode: tc.mode, Encapsulation: model.IPIP}, tc.routed
		paths := nodepath.Resolve(s)
		got := paths["n2"]
		if got.Mode != tc.want || got.ReceivesIPIP != tc.receives || got.Routed != tc.route || got.NotIPIP != tc.why {
			t.Errorf("%s: %+v", tc.name, got)
		}
		if tc.want == overlay && got.Encapsulation != model.Geneve {
			t.Errorf("%s: sent by %s", tc.name, got.Encapsulation)
		}
		if mtu := nodepath.PodMTU(paths, 1500); tc.mode != direct && mtu != tc.mtu {
			t.Errorf("%s: MTU %d, want %d", tc.name, mtu, tc.mtu)
		}
	}
	s := snapshot(encrypting("n1", "1", "172.30.0."), encrypting("n2", "2", "172.30.0."))
	s.Transport = model.Transport{Mode: overlay, Encapsulation: model.IPIP, Encrypted: true, Strict: true}
	s.Routed = all
	if got := nodepath.Resolve(s)["n2"]; got.Mode != model.ModeWireGuard || got.ReceivesIPIP {
		t.Errorf("strictly encrypted: %+v", got)
	}
}

// TestReceivesIPIPWhileItSaysSo: a node accepts IPIP while the setting asks for it, while its Node object says so, and
// in the grace afterwards; never beside strict encryption.
func TestReceivesIPIPWhileItSaysSo(t *testing.T) {
	for i := range 16 {
		setting, published, grace, strict := i&1 > 0, i&2 > 0, i&4 > 0, i&8 > 0
		self := tunneling("n1", "1", "172.30.0.")
		self.ReceivesIPIP = published
		s := snapshot(self, encrypting("n2", "2", "172.30.0."))
		s.Transport.Encrypted, s.Transport.Strict, s.IPIPGrace, s.Routed = strict, strict, grace, self.PodCIDRs
		s.Routed = s.Nodes["n2"].PodCIDRs
		if setting {
			s.Transport.Encapsulation = model.IPIP
		}
		want := !strict && slices.Contains([]bool{setting, published, grace}, true)
		if got := nodepath.Resolve(s)["n2"].ReceivesIPIP; got != want {
			t.Errorf("setting %v, published %v, grace %v, strict %v: %v", setting, published, grace, strict, got)
		}
	}
}
