package flows_test

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
)

// TestDirectPeer: packets to a node leave by the gateway when they travel directly, in IPIP or encrypted, and what its
// pods send comes from there as from a node. Both ways are apart: while the transport changes, a node receives in both
// forms and sends in one. Only with Strict it receives nothing from tunnels.
func TestDirectPeer(t *testing.T) {
	node := func(name, number string) model.Node {
		cidr := netip.MustParsePrefix("10.244." + number + ".0/24")
		uplink, err := model.ParseUplink("172.30.0." + number + "/24@02:00:00:00:00:0" + number)
		if err != nil {
			t.Fatal(err)
		}
		return model.Node{Name: name, Addrs: []netip.Addr{uplink.Prefix.Addr()}, PodCIDRs: []netip.Prefix{cidr},
			Underlay: []model.Uplink{uplink}, ReceivesDirect: true, ReceivesWireGuard: true,
			WireGuard: model.WireGuard{Key: model.WireGuardKey{number[0]}, Port: 51871}}
	}
	const (
		fromTunnel = "node/n2: SpoofGuard 100 ip,reg0=0x2/0xf,tun_src=172.30.0.2,nw_src=10.244.2.0/24 -> goto_table:20"
		toNode     = "node/n2: Forwarding 100 ip,nw_dst=10.244.2.0/24 -> "
		toTunnel   = "set_field:172.30.0.2->tun_dst,set_field:0x1->reg1,goto_table:80"
	)
	fromGateway := regexp.MustCompile(`(?m)^node/n2: SpoofGuard \d+ ip,reg0=0x3/0xf,nw_src=10\.244\.2\.0/24 -> ` +
		`set_field:0x2/0xf->reg0,goto_table:20$`)
	toGateway := regexp.MustCompile(`(?m)^node/n2: Forwarding 100 ip,nw_dst=10\.244\.2\.0/24 -> \S+,set_field:0x3->reg1,` +
		`goto_table:80$`)
	for _, tc := range []struct {
		name             string
		mode             model.Mode
		receives, routed bool
		encrypt, strict  bool
		receive, send    bool
	}{
		{"overlay", model.ModeOverlay, false, false, false, false, false, false},
		{"overlay, still received", model.ModeOverlay, true, false, false, false, true, false},
		{"direct, not routed yet", model.ModeDirect, true, false, false, false, true, false},
		{"direct", model.ModeDirect, true, true, false, false, true, true},
		{"IPIP, not routed yet", model.ModeOverlay, false, false, false, false, true, false},
		{"IPIP", model.ModeOverlay, false, true, false, false, true, true},
		{"encrypted, not routed yet", model.ModeOverlay, false, false, true, false, true, false},
		{"encrypted", model.ModeOverlay, false, true, true, false, true, true},
		{"strict", model.ModeOverlay, false, true, true, true, true, true},
	} {
		self, peer := node("n1", "1"), node("n2", "2")
		self.ReceivesDirect, self.ReceivesWireGuard = tc.receives, false
		encapsulation := model.Geneve
		if strings.HasPrefix(tc.name, "IPIP") {
			encapsulation, self.ReceivesIPIP, peer.ReceivesIPIP = model.IPIP, true, true
		}
		s := &model.Snapshot{Self: self, Transport: model.Transport{Mode: tc.mode, Encapsulation: encapsulation,
			Encrypted: tc.encrypt, Strict: tc.strict}, Handshakes: []model.WireGuardKey{peer.WireGuard.Key},
			Nodes: map[string]model.Node{"n2": peer}}
		if tc.routed {
			s.Routed = peer.PodCIDRs
		}
		desired, err := flows.Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		text := readable(desired)
		if got := fromGateway.MatchString(text); got != tc.receive {
			t.Errorf("%s: received from the gateway %t, want %t:\n%s", tc.name, got, tc.receive, text)
		}
		if strings.Contains(text, fromTunnel+"\n") == tc.strict {
			t.Errorf("%s: received from the tunnel %t, want %t:\n%s", tc.name, tc.strict, !tc.strict, text)
		}
		_, to, found := strings.Cut(text, toNode)
		to, _, _ = strings.Cut(to, "\n")
		if direct := toGateway.MatchString(text); !found || direct != tc.send || strings.HasSuffix(to, toTunnel) == tc.send {
			t.Errorf("%s: sent to the gateway %t, want %t: %s", tc.name, direct, tc.send, to)
		}
	}
}
