package model_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

func TestGatewayAddr(t *testing.T) {
	for cidr, want := range map[string]string{"10.244.1.0/24": "10.244.1.1", "10.244.1.77/24": "10.244.1.1",
		"fd44:1::/64": "fd44:1::1"} {
		if got := model.GatewayAddr(netip.MustParsePrefix(cidr)); got.String() != want {
			t.Errorf("gateway of %s is %s, want %s", cidr, got, want)
		}
	}
}

func TestMAC(t *testing.T) {
	m, err := model.ParseMAC("0A:57:65:66:74:01")
	if err != nil || m != model.RouterMAC {
		t.Errorf("ParseMAC = %s, %v", m, err)
	}
	for _, bad := range []string{"", "0a:57:65:66:74", "0a:57:65:66:74:01:02:03"} {
		if _, err := model.ParseMAC(bad); err == nil {
			t.Errorf("ParseMAC(%q) gave no error", bad)
		}
	}
}

// TestAttachmentJSON: OVSDB and operators read this form; decoding is the inverse of encoding.
func TestAttachmentJSON(t *testing.T) {
	a := model.Attachment{ContainerID: "c", IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: "p", UID: "u"},
		HostIfName: "p-1", OFPort: 16,
		MAC: model.GatewayMAC, IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd44::2")}}
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var b model.Attachment
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	if b.Key() != a.Key() || b.Pod != a.Pod || b.MAC != a.MAC || b.OFPort != a.OFPort || !slices.Equal(a.IPs, b.IPs) {
		t.Errorf("%s came back as %+v", text, b)
	}
}

func TestParsePodRef(t *testing.T) {
	if p, err := model.ParsePodRef("ns/p"); err != nil || p.String() != "ns/p" {
		t.Errorf("ParsePodRef = %v, %v", p, err)
	}
	for _, bad := range []string{"", "p", "/p", "ns/", "a/b/c"} {
		if _, err := model.ParsePodRef(bad); err == nil {
			t.Errorf("ParsePodRef(%q) gave no error", bad)
		}
	}
}

func TestOwnerOrder(t *testing.T) {
	a, b := model.Attachment{ContainerID: "1",
		Pod: model.PodRef{Namespace: "ns", Name: "p"}}, model.Attachment{ContainerID: "2", Pod: model.PodRef{Namespace: "ns",
		Name: "p"}}
	want := []model.Owner{model.PipelineOwner, model.SelfOwner, model.NodeOwner("a"), model.NodeOwner("b"),
		model.PodOwner(a), model.PodOwner(b)}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, model.Owner.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("order = %v, want %v", got, want)
	}
	if s := model.PodOwner(a).String(); s != "pod/ns/p" {
		t.Errorf("a pod's owner reads %q", s)
	}
}

// TestForwardedPortsAsDocumented: docs/services.md has the number of connections that a node forwards to one endpoint.
func TestForwardedPortsAsDocumented(t *testing.T) {
	count := func(r model.PortRange) int { return int(r.Last) - int(r.First) + 1 }
	if count(model.ForwardedPorts) != 31744 || count(model.ForwardedPrivilegedPorts) != 212 {
		t.Errorf("%d and %d ports: docs/services.md names others", count(model.ForwardedPorts),
			count(model.ForwardedPrivilegedPorts))
	}
}
