package nodepath_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/nodepath"
)

// encrypting is a neighbor with a device that receives.
func encrypting(name, number, subnet string) model.Node {
	n := neighbor(name, number, subnet)
	n.WireGuard = model.WireGuard{Key: model.WireGuardKey{number[0]}, Port: 51870 + uint16(number[0]-'0')}
	n.ReceivesWireGuard = true
	return n
}

// TestWireGuard: what goes to and comes from a peer node by WireGuard, by the settings, what both nodes publish, the
// handshake and the kernel's routes; and the reasons. With Strict nothing else does, in no transport.
func TestWireGuard(t *testing.T) {
	near, far := encrypting("n2", "2", "172.30.0."), encrypting("n2", "2", "172.31.0.")
	silent, keyless := near, near
	silent.ReceivesWireGuard = false
	keyless.WireGuard = model.WireGuard{}
	mine, shared := near, near
	mine.WireGuard.Key = model.WireGuardKey{'1'}
	shared.WireGuard.Key = model.WireGuardKey{'3'}
	shaken := []model.WireGuardKey{near.WireGuard.Key}
	all := near.PodCIDRs
	overlay, direct, hybrid, wg := model.ModeOverlay, model.ModeDirect, model.ModeHybrid, model.ModeWireGuard
	const only = "; encryptionStrict allows no other way"
	const notYet = "the node's kernel does not route 10.244.2.0/24 to it yet"
	const noKey, silentText = "node n2 publishes no WireGuard key",
		"node n2 does not publish that it receives packets by WireGuard"
	for _, tc := range []struct {
		name       string
		mode       model.Mode
		strict     bool
		peer       model.Node
		handshakes []model.WireGuardKey
		routed     []netip.Prefix
		want       model.Mode // empty for unreachable
		peered     bool
		route      model.Mode
		why        string
	}{
		{"all is there", overlay, false, near, shaken, all, wg, true, wg, ""},
		{"strict", overlay, true, near, nil, all, wg, true, wg, ""},
		{"another subnet, instead of direct", direct, false, far, shaken, all, wg, true, wg, ""},
		{"instead of hybrid", hybrid, true, far, shaken, all, wg, true, wg, ""},
		{"no handshake", overlay, false, near, nil, all, overlay, true, "", "WireGuard has not shaken hands with node n2 yet"},
		{"no handshake, direct", direct, false, near, nil, all, direct, true, direct,
			"WireGuard has not shaken hands with node n2 yet"},
		{"no route", overlay, false, near, shaken, all[1:], overlay, true, wg, notYet},
		{"no route, strict", overlay, true, near, shaken, nil, "", true, wg, notYet + only},
		{"no key", overlay, false, keyless, shaken, all, overlay, false, "", noKey},
		{"no key, direct", direct, false, keyless, shaken, all, direct, false, direct, noKey},
		{"no key, strict", direct, true, keyless, shaken, all, "", false, "", noKey + only},
		{"does not receive", overlay, false, silent, shaken, all, overlay, true, "", silentText},
		{"does not receive, strict", overlay, true, silent, shaken, all, "", true, "", silentText + only},
		{"this node's key", overlay, true, mine, shaken, all, "", false, "", "node n2 publishes the WireGuard key of node n1" + only},
		{"an older node's key", overlay, true, shared, shaken, all, "", false, "", "node n2 publishes the WireGuard key of node n3" + only},
	} {
		older := encrypting("n3", "3", "172.30.0.")
		tc.peer.Created = 1
		s := snapshot(encrypting("n1", "1", "172.30.0."), tc.peer, older)
		s.Transport = model.Transport{Mode: tc.mode, Encapsulation: model.Geneve, Encrypted: true, Strict: tc.strict}
		s.Handshakes, s.Routed = tc.handshakes, tc.routed
		paths := nodepath.Resolve(s)
		got := paths["n2"]
		if got.Mode != tc.want || got.WireGuard.Valid() != tc.peered || got.Routed != tc.route ||
			got.NotEncrypted+got.Unreachable != tc.why || got.Reachable() != (tc.want != "") {
			t.Errorf("%s: %+v", tc.name, got)
		}
		if got.Reachable() && got.Strict != tc.strict || tc.strict && got.ReceivesDirect {
			t.Errorf("%s: strict %v, receives without encryption %v", tc.name, got.Strict, got.ReceivesDirect)
		}
		endpoint := netip.AddrPortFrom(tc.peer.Addrs[0], 51872)
		if tc.peered && got.WireGuard.Endpoint != endpoint {
			t.Errorf("%s: endpoint %s, want %s", tc.name, got.WireGuard.Endpoint, endpoint)
		}
		if mtu := nodepath.PodMTU(paths, 1500); mtu != 1500-60-15 {
			t.Errorf("%s: MTU %d, want %d", tc.name, mtu, 1500-60-15)
		}
	}
	s := snapshot(model.Node{Name: "n1", Addrs: addrs("fd30::1"), PodCIDRs: cidrs("fd44:1::/64")},
		model.Node{Name: "n2", Addrs: addrs("fd30::2"), PodCIDRs: cidrs("fd44:2::/64")})
	s.Transport.Encrypted = true
	if mtu := nodepath.PodMTU(nodepath.Resolve(s), 1500); mtu != 1500-80-15 {
		t.Errorf("over IPv6: MTU %d, want %d", mtu, 1500-80-15)
	}
}

// TestDecryptsWhileItSaysSo: a node decrypts what peers send while the setting asks for it, while its Node object says
// so, and in the grace afterwards.
func TestDecryptsWhileItSaysSo(t *testing.T) {
	for i := range 8 {
		setting, published, grace := i&1 > 0, i&2 > 0, i&4 > 0
		self := encrypting("n1", "1", "172.30.0.")
		self.ReceivesWireGuard = published
		s := snapshot(self, encrypting("n2", "2", "172.30.0."))
		s.Transport.Encrypted, s.WireGuardGrace = setting, grace
		want := slices.Contains([]bool{setting, published, grace}, true)
		if got := nodepath.Resolve(s)["n2"].WireGuard.Valid(); got != want {
			t.Errorf("setting %v, published %v, grace %v: %v", setting, published, grace, got)
		}
	}
}
