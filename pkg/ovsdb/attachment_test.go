package ovsdb

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/model"
)

var dual = model.Attachment{
	ContainerID: "3f7a",
	IfName:      "eth0",
	Pod:         model.PodRef{Namespace: "shop", Name: "cart-0", UID: "b0c1"},
	HostIfName:  "w3f7a",
	OFPort:      17,
	MAC:         model.MAC{0x0a, 0x58, 10, 244, 1, 2},
	IPs:         []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:1::2")},
}

func TestAttachmentRoundTrip(t *testing.T) {
	static := dual
	static.Pod.UID = "" // the runtime named the pod without a UID
	static.IPs = dual.IPs[1:]
	for _, a := range []model.Attachment{dual, static} {
		got, err := decodeAttachment(a.HostIfName, encodeAttachment(a))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("read back (-want +got):\n%s", diff)
		}
	}
}

func TestEncodedAttachment(t *testing.T) {
	want := map[string]string{
		"weft.pod":          "shop/cart-0",
		"weft.pod-uid":      "b0c1",
		"weft.container-id": "3f7a",
		"weft.if-name":      "eth0",
		"weft.ofport":       "17",
		"weft.mac":          "0a:58:0a:f4:01:02",
		"weft.ips":          "10.244.1.2,fd00:1::2",
	}
	if diff := cmp.Diff(want, encodeAttachment(dual)); diff != "" {
		t.Errorf("external_ids, which older and newer agents read too (-want +got):\n%s", diff)
	}
}

func TestDamagedAttachment(t *testing.T) {
	for _, tt := range []struct{ key, value, want string }{
		{idPod, "", "has no weft.pod"},
		{idPod, "cart-0", "weft.pod: \"cart-0\" is not NAMESPACE/NAME"},
		{idContainerID, "", "has no weft.container-id"},
		{idIfName, "", "has no weft.if-name"},
		{idMAC, "", "has no weft.mac"},
		{idMAC, "0a:58", "weft.mac: "},
		{idOFPort, "", "has no weft.ofport"},
		{idOFPort, "x", "weft.ofport: "},
		{idOFPort, "3", "3 is not a pod's port number (16 to 65024)"},
		{idOFPort, "65025", "is not a pod's port number"},
		{idIPs, "", "has no weft.ips"},
		{idIPs, "10.244.1.2,", "weft.ips: "},
		{idIPs, "10.244.1.256", "weft.ips: "},
	} {
		ids := maps.Clone(encodeAttachment(dual))
		ids[tt.key] = tt.value
		_, err := decodeAttachment("w3f7a", ids)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s=%q: error %v, want one with %q", tt.key, tt.value, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s=%q: one fault, several errors: %v", tt.key, tt.value, err)
		}
	}
}

func TestManagementSocket(t *testing.T) {
	if got, err := managementSocket("unix:/run/openvswitch/db.sock", "weft"); err != nil ||
		got != "/run/openvswitch/weft.mgmt" {
		t.Errorf("managementSocket = %q, %v", got, err)
	}
	if _, err := managementSocket("tcp:127.0.0.1:6640", "weft"); err == nil ||
		!strings.Contains(err.Error(), "not a Unix socket") {
		t.Errorf("managementSocket of a TCP endpoint: error %v", err)
	}
}
