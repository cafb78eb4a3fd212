package host

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// TestIPIPElement: elements with a source inside are read as they were written, and what Weft never writes is not.
func TestIPIPElement(t *testing.T) {
	for _, s := range sets {
		inner := map[string]string{"ipip4-v4": "10.244.2.0", "ipip4-v6": "10.0.0.0", "ipip6-v4": "fd00:10:2::", "ipip6-v6": "64:ff9b::"}[s.name]
		if inner == "" {
			continue
		}
		outer := map[bool]string{true: "192.0.2.12", false: "2001:db8::12"}[s.is4]
		e := element{prefix: single(netip.MustParseAddr(outer)), inner: netip.MustParseAddr(inner)}
		k := s.element(e)
		if got, ok := s.parse(k); !ok || got != e {
			t.Errorf("%s: %v is read as %v, %v", s.name, k.Key, got, ok)
		}
		for _, wrong := range []string{"", "x", "-1", "0x1ffffffffffffffffffffffffffffffff"} {
			k.Key[1] = wrong
			if got, ok := s.parse(k); ok {
				t.Errorf("%s: %q is read as %v", s.name, wrong, got)
			}
		}
	}
}

// TestIPIPDevices: a node has the devices for the addresses that peers send to and for its own pods' families, and
// routes to peers by them. The next hop of IPv6 in IPv4 is the peer's address in IPv6; over IPv6 a peer has a device.
func TestIPIPDevices(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	d := dualStack()
	d.IPIP = true
	peer := func(number string, local, next netip.Addr) model.Path {
		return model.Path{PodCIDRs: prefixes("10.244."+number+".0/24", "fd00:10:"+number+"::/64"), Local: local, NextHop: next,
			ReceivesIPIP: true, Routed: model.ModeIPIP}
	}
	seven := netip.MustParseAddr("2001:db8::7")
	over6, over4 := peer("7", six, seven), peer("8", four, netip.MustParseAddr("192.0.2.8"))
	of7 := model.IPIPDevice(seven, true)
	if len(of7) > 15 || !model.IsIPIPDevice(of7) || of7 != model.IPIPDevice(seven, false) ||
		of7 == model.IPIPDevice(six, true) {
		t.Errorf("the device over IPv6 is %s", of7)
	}
	only4 := map[string]ipipEnds{model.IPIPName: {local: four}, model.SITName: {local: four}}
	check := func(want map[string]ipipEnds) {
		t.Helper()
		if got := d.ipipDevices(); !maps.Equal(got, want) {
			t.Errorf("devices %v, want %v", got, want)
		}
	}
	check(only4)
	d.Peers = []model.Path{over6, over4}
	check(map[string]ipipEnds{model.IPIPName: {local: four}, model.SITName: {local: four}, of7: {six, seven}})
	want := []ipipRoute{
		{prefixes("10.244.7.0/24")[0], netip.Addr{}, of7}, {prefixes("fd00:10:7::/64")[0], netip.Addr{}, of7},
		{prefixes("10.244.8.0/24")[0], over4.NextHop, model.IPIPName},
		{prefixes("fd00:10:8::/64")[0], netip.MustParseAddr("::c000:208"), model.SITName},
	}
	if got := d.ipipRoutes(); !slices.Equal(got, want) {
		t.Errorf("routes %v, want %v", got, want)
	}
	d.PodCIDRs, d.Peers = d.PodCIDRs[:1], d.Peers[1:]
	check(map[string]ipipEnds{model.IPIPName: {local: four}})
	d.IPIP = false
	check(map[string]ipipEnds{})
}
