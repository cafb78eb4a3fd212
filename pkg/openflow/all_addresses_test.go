package openflow_test

import (
	"net/netip"
	"testing"

	"github.com/digitalocean/go-openvswitch/ovs"

	"github.com/weft-cni/weft/pkg/openflow"
)

// TestAllAddresses: Open vSwitch prints no field that every packet has, so a flow with one would never be read back as
// it was sent.
func TestAllAddresses(t *testing.T) {
	for proto, all := range map[ovs.Protocol]string{ovs.ProtocolIPv4: "0.0.0.0/0", ovs.ProtocolIPv6: "::/0"} {
		p := netip.MustParsePrefix(all)
		f, err := openflow.New(48, 5, 1, proto, []ovs.Match{openflow.Source(p), openflow.Destination(p)}, ovs.Drop())
		if err != nil || f.Match.String() != string(proto) {
			t.Errorf("%s: match %q, %v; want %s", all, f.Match, err, proto)
		}
	}
}
