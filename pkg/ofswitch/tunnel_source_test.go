package ofswitch

import (
	"net/netip"
	"testing"
)

// TestIgnoresSource: as the tags of Open vSwitch's repository have it.
func TestIgnoresSource(t *testing.T) {
	for release, want := range map[string]bool{
		"2.17.9": true, "2.17.10": false, "3.0.6": true, "3.0.7": false, "3.1.0": true, "3.1.4": true, "3.1.5": false,
		"3.2.2": true, "3.2.3": false, "3.3.0": true, "3.3.1": false, "3.4.0": false, "3.7.1": false, "4.0.0": false,
		"2.16.7": true, "x": true,
	} {
		if got := ignoresSource("ovs-vswitchd (Open vSwitch) " + release); got != want {
			t.Errorf("%s: %v, want %v", release, got, want)
		}
	}
}

func TestTunnelRoutes(t *testing.T) {
	routes := parseTunnelRoutes(`Route Table:
Cached: 172.31.0.12/32 dev br-phy SRC 172.31.0.12 local
Cached: fd57::12/128 dev br-phy SRC fd57::12 local
Cached: 172.31.0.0/24 dev br-phy SRC 172.31.0.12
Cached: fd57::/64 dev br-phy SRC fd57::99
User: fd57::13/128 MARK 5 dev br-phy SRC fd57::98
Cached: ::/0 dev br-phy GW fd57::1 SRC fd57::12
Cached: fd58::/64 dev br-phy SRC nonsense
`)
	for peer, want := range map[string]string{
		"fd57::11": "fd57::99", "fd57::13": "fd57::99", "fd59::1": "fd57::12", "fd58::1": "fd57::12", "172.31.0.11": "",
	} {
		got, ok := routes.To(netip.MustParseAddr(peer))
		if ok != (want != "") || ok && got != netip.MustParseAddr(want) {
			t.Errorf("to %s: %v %v, want %q", peer, got, ok, want)
		}
	}
	if _, ok := TunnelSources(nil).To(netip.MustParseAddr("fd57::11")); ok {
		t.Error("a source without routes")
	}
}
