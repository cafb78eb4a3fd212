package model_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// TestEncapsulations: these values are on the wire, in the switch or in OVSDB, and never change. A pod's packet must
// fit into the underlay's usual 1500 bytes, with the header lengths of RFC 791 (20), RFC 8200 (40), RFC 768 (8), RFC
// 7348, RFC 8926 and RFC 2890 (8), and an inner Ethernet header (14).
func TestEncapsulations(t *testing.T) {
	type facts struct {
		udpPort             uint16
		port                uint32
		name, interfaceType string
		overIPv4, overIPv6  int
		outer, module       string
	}
	want := map[model.Encapsulation]facts{
		"geneve": {6081, 1, "weft-geneve", "geneve", 50, 70, "UDP port 6081", "vport-geneve"},
		"vxlan":  {4789, 2, "weft-vxlan", "vxlan", 50, 70, "UDP port 4789", "vport-vxlan"},
		"gre":    {0, 4, "weft-gre", "gre", 42, 62, "IP protocol 47", "vport-gre"},
	}
	if ipip := model.IPIP; ipip.Overhead(netip.MustParseAddr("172.30.0.1")) != 20 || ipip.Overhead(netip.MustParseAddr("fd30::1")) != 40 ||
		ipip.OuterProtocol() != "IP protocol 4 or 41" || slices.Contains(model.Encapsulations, ipip) {
		t.Errorf("IPIP adds %d bytes over IPv4, by %s", ipip.Overhead(netip.MustParseAddr("172.30.0.1")), ipip.OuterProtocol())
	}
	if len(model.Encapsulations) != len(want) {
		t.Errorf("encapsulations %v, want %d", model.Encapsulations, len(want))
	}
	for _, e := range model.Encapsulations {
		got := facts{
			e.UDPPort(), e.Port(), e.PortName(), e.InterfaceType(),
			e.Overhead(netip.MustParseAddr("172.30.0.1")), e.Overhead(netip.MustParseAddr("fd30::1")),
			e.OuterProtocol(), e.Module(),
		}
		if got != want[e] {
			t.Errorf("%s has %+v, want %+v", e, got, want[e])
		}
		if err := model.Tunnel(e).Check(); err != nil {
			t.Errorf("transport %s: %v", e, err)
		}
	}
}

func TestInvalidTransport(t *testing.T) {
	for _, tc := range []struct {
		transport model.Transport
		want      string
	}{
		{model.Transport{}, `invalid mode ""; allowed: [overlay direct hybrid]`},
		{model.Transport{Mode: "tunnel", Encapsulation: model.VXLAN}, `invalid mode "tunnel"; allowed: [overlay direct hybrid]`},
		{model.Transport{Mode: model.ModeHybrid, Encapsulation: model.VXLAN, FabricRoutes: true},
			"transport hybrid needs directRoutes node: the nodes of one subnet reach each other by routes of the agent"},
		{model.Tunnel("stt"), `invalid encapsulation "stt"; allowed: [geneve vxlan gre ipip]`},
	} {
		if err := tc.transport.Check(); err == nil || err.Error() != tc.want {
			t.Errorf("%+v: %v, want %s", tc.transport, err, tc.want)
		}
	}
}

// TestTunnelUDPPorts: the ports that the node's packets are masqueraded to are unprivileged and none of a tunnel's.
func TestTunnelUDPPorts(t *testing.T) {
	if got := model.TunnelUDPPorts(); !slices.Equal(got, []uint16{4789, 6081}) {
		t.Errorf("TunnelUDPPorts = %v", got)
	}
	if got := model.TunnelProtocols(); !slices.Equal(got, []uint8{47, 4, 41}) {
		t.Errorf("TunnelProtocols = %v", got)
	}
	beside := model.PortsBesideTunnels()
	if beside != (model.PortRange{First: 6082, Last: 65535}) {
		t.Errorf("PortsBesideTunnels = %v", beside)
	}
	for port, want := range map[uint16]bool{4789: true, 6081: true, 6080: false, 53: false, 0: false} {
		if model.IsTunnelUDPPort(port) != want || want && beside.Contains(port) {
			t.Errorf("port %d: tunnel %v, want %v; beside tunnels %v", port, !want, want, beside.Contains(port))
		}
	}
}
