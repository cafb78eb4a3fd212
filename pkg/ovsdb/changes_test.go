package ovsdb

import (
	"testing"

	dbmodel "github.com/ovn-org/libovsdb/model"
)

func TestConcernsUs(t *testing.T) {
	pod := map[string]string{idPod: "default/web"}
	c := &Client{bridge: "weft"}
	c.markOwnRemoval("port-1", &interfaceRow{UUID: "iface-1"})
	for _, tc := range []struct {
		name     string
		old, row dbmodel.Model
		want     bool
	}{
		{"pod's interface added", nil, &interfaceRow{Name: "p0", ExternalIDs: pod}, false},
		{"its number given", &interfaceRow{ExternalIDs: pod}, &interfaceRow{OFPort: ptr(7), ExternalIDs: pod}, false},
		{"its requested number changed", &interfaceRow{ExternalIDs: pod},
			&interfaceRow{OFPortRequest: ptr(7), ExternalIDs: pod}, true},
		{"its record damaged", &interfaceRow{ExternalIDs: map[string]string{idPod: "default/web", idMAC: "x"}},
			&interfaceRow{ExternalIDs: pod}, true},
		{"its record lost", &interfaceRow{ExternalIDs: pod}, &interfaceRow{}, true},
		{"its interface removed by another program", &interfaceRow{UUID: "iface-2", ExternalIDs: pod}, nil, true},
		{"its interface removed by us", &interfaceRow{UUID: "iface-1", ExternalIDs: pod}, nil, false},
		{"its port removed by us", &portRow{UUID: "port-1"}, nil, false},
		{"our removal counts once", &portRow{UUID: "port-1"}, nil, true},
		{"port added", nil, &portRow{}, false},
		{"port got another interface", &portRow{}, &portRow{Interfaces: []string{"x"}}, true},
		{"tunnel's interface failed", &interfaceRow{Name: "weft-geneve"},
			&interfaceRow{Name: "weft-geneve", Error: ptr("no")}, true},
		{"bridge has one more port", &bridgeRow{Name: "weft"}, &bridgeRow{Name: "weft", Ports: []string{"x"}}, false},
		{"bridge changed", &bridgeRow{Name: "weft"}, &bridgeRow{Name: "weft", STPEnable: true}, true},
		{"bridge made", nil, &bridgeRow{Name: "weft"}, true},
		{"bridge deleted", &bridgeRow{Name: "weft"}, nil, true},
		{"other bridge changed", &bridgeRow{Name: "br0"}, &bridgeRow{Name: "br0", STPEnable: true}, false},
		{"other bridge deleted", &bridgeRow{Name: "br0"}, nil, false},
		{"first sight of the root", nil, &rootRow{}, true},
		{"interface added that is not a pod's", nil, &interfaceRow{Name: "weft0"}, true},
		{"another program's commit", &rootRow{NextCfg: 1}, &rootRow{NextCfg: 2}, false},
		{"ovs-vswitchd applied it", &rootRow{CurCfg: 1}, &rootRow{CurCfg: 2}, false},
		{"told to wait", &rootRow{}, &rootRow{OtherConfig: map[string]string{flowRestoreWait: "true"}}, true},
		{"datapath's settings gone", &rootRow{Datapaths: map[string]string{"netdev": "x"}}, &rootRow{}, true},
		{"zone's timeouts changed", &timeoutPolicyRow{}, &timeoutPolicyRow{Timeouts: map[string]int{"tcp_close": 1}}, true},
		{"zone gone", &zoneRow{}, nil, true},
		{"flow table gone", &flowTableRow{}, nil, true},
	} {
		if got := c.needsRepair(tc.old, tc.row); got != tc.want {
			t.Errorf("%s: %t, want %t", tc.name, got, tc.want)
		}
	}
}
