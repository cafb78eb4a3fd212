package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
)

// TestHostPorts: attached pods have their host ports, at the addresses of their families, and no other pod has them.
func TestHostPorts(t *testing.T) {
	to := netip.MustParseAddrPort
	view := &model.Snapshot{Attachments: map[model.AttachmentKey]model.Attachment{}}
	for _, a := range []model.Attachment{
		{ContainerID: "c1", IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: "web", UID: "u"},
			IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00::2")}},
		{ContainerID: "c1", IfName: "net1", Pod: model.PodRef{Namespace: "ns", Name: "web", UID: "u"},
			IPs: []netip.Addr{netip.MustParseAddr("10.9.9.9")}},
		{ContainerID: "c2", IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: "again", UID: "old"},
			IPs: []netip.Addr{netip.MustParseAddr("10.244.1.3")}},
		{ContainerID: "c3", IfName: "eth0", Pod: model.PodRef{Namespace: "ns", Name: "done", UID: "d"},
			IPs: []netip.Addr{netip.MustParseAddr("10.244.1.4")}},
	} {
		view.Attachments[a.Key()] = a
	}
	tcp := func(addr string, port uint16) model.HostPort {
		p := model.HostPort{Protocol: model.TCP, Port: port, ContainerPort: 80}
		if addr != "" {
			p.Addr = netip.MustParseAddr(addr)
		}
		return p
	}
	pods := []model.Pod{
		{PodRef: model.PodRef{Namespace: "ns", Name: "web", UID: "u"}, HostPorts: []model.HostPort{
			tcp("", 8080), tcp("0.0.0.0", 8081), tcp("::", 8082), tcp("192.0.2.1", 8083), tcp("127.0.0.1", 8084),
			{Protocol: model.UDP, Port: model.Geneve.UDPPort(), ContainerPort: 1},
		}},
		{PodRef: model.PodRef{Namespace: "ns", Name: "again", UID: "new"}, HostPorts: []model.HostPort{tcp("", 9000)}},
		{PodRef: model.PodRef{Namespace: "ns", Name: "done", UID: "d"}, Phase: "Succeeded", HostPorts: []model.HostPort{
			tcp("", 9001)}},
		{PodRef: model.PodRef{Namespace: "ns", Name: "not attached", UID: "n"}, HostPorts: []model.HostPort{tcp("", 9002)}},
	}
	four, six := to("10.244.1.2:80"), to("[fd00::2]:80")
	want := []host.HostPort{
		{Protocol: model.TCP, Port: 8080, To: four}, {Protocol: model.TCP, Port: 8080, To: six},
		{Protocol: model.TCP, Port: 8081, To: four}, {Protocol: model.TCP, Port: 8082, To: six},
		{Addr: netip.MustParseAddr("192.0.2.1"), Protocol: model.TCP, Port: 8083, To: four},
	}
	slices.SortFunc(want, host.CompareHostPorts)
	// Of another pod, which is not attached, and of one that has ended.
	last := append(slices.Clone(want), host.HostPort{Port: 9002, To: to("10.244.1.9:80")}, host.HostPort{Port: 9001,
		To: to("10.244.1.4:80")})
	for _, has := range [][]host.HostPort{nil, last} {
		if got := hostPorts(view, pods, has); !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	// The API server has the first pod no longer.
	if got := hostPorts(view, pods[1:], last); !slices.Equal(got, want) {
		t.Errorf("of a pod that is missing: %v, want %v", got, want)
	}
	view.Unknown = map[model.AttachmentKey]bool{{ContainerID: "c1", IfName: "eth0"}: true}
	if got := hostPorts(view, pods[1:], last); len(got) > 0 {
		t.Errorf("of a pod that is closed: %v", got)
	}
}

// TestNodePortAddrs: the word primary stands for the node's InternalIPs.
func TestNodePortAddrs(t *testing.T) {
	self := model.Node{Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("fd30::1")}}
	for _, c := range []struct {
		setting []string
		want    []netip.Prefix
	}{
		{nil, nil},
		{[]string{config.PrimaryAddresses}, []netip.Prefix{netip.MustParsePrefix("172.30.0.1/32"),
			netip.MustParsePrefix("fd30::1/128")}},
		{[]string{"192.0.2.0/24"}, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
	} {
		if got := nodePortAddrs(c.setting, self); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.setting, got, c.want)
		}
	}
}
