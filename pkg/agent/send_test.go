package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report/api"
)

// TestSentPackets: a packet is made at the port of its pod, with addresses that the pod has, and no other.
func TestSentPackets(t *testing.T) {
	view := &model.Snapshot{Attachments: map[model.AttachmentKey]model.Attachment{{ContainerID: "c"}: {
		Pod: model.PodRef{Namespace: "shop", Name: "web"}, MAC: model.MAC{2, 0, 0, 0, 0, 9}, OFPort: 16,
		IPs: []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd44::2")}}}}
	for _, tc := range []struct {
		pod, source, destination string
		protocol                 uint8
		want, err                string
	}{
		{"shop/web", "10.244.0.2:61000", "10.96.0.1:80", 6, "10.244.0.2:61000 > 10.96.0.1:80 TCP SYN", ""},
		{"shop/web", "[fd44::2]:61000", "[fd96::1]:53", 17, "[fd44::2]:61000 > [fd96::1]:53 UDP, 0 bytes", ""},
		{"shop/web", "[fd44::2]:61000", "[fd96::1]:53", 132, "[fd44::2]:61000 > [fd96::1]:53 SCTP, 20 bytes", ""},
		{"shop/web", "10.244.0.2:61000", "10.244.1.2:0", 1, "10.244.0.2 > 10.244.1.2 ICMP echo request", ""},
		{"shop/web", "[fd44::2]:61000", "[fd44::3]:0", 58, "fd44::2 > fd44::3 ICMP echo request", ""},
		{"shop/none", "10.244.0.2:61000", "10.96.0.1:80", 6, "", "pod shop/none is not attached to this node with the address 10.244.0.2"},
		{"shop/web", "10.244.0.3:61000", "10.96.0.1:80", 6, "", "pod shop/web is not attached to this node with the address 10.244.0.3"},
		{"shop/web", "10.244.0.2:61000", "[fd96::1]:80", 6, "", "10.244.0.2 and fd96::1 are not of one family"},
		{"shop/web", "10.244.0.2:61000", "10.96.0.1:80", 2, "", "protocol 2: want TCP, UDP, SCTP or ICMP"},
	} {
		p, err := packetFrom(view, api.SendRequest{Pod: tc.pod, Source: netip.MustParseAddrPort(tc.source),
			Destination: netip.MustParseAddrPort(tc.destination), Protocol: tc.protocol})
		if err != nil || tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%+v: %v", tc, err)
			}
			continue
		}
		h := capture.Parse(p.Packet, false)
		none := capture.Names{}
		source, destination := h.Ends(none.Of)
		if got := source + " > " + destination + " " + h.Info(none.Of); got != tc.want || p.InPort != 16 {
			t.Errorf("%q at port %d, want %q at port 16", got, p.InPort, tc.want)
		}
		if to, from := string(p.Packet[:6]), string(p.Packet[6:12]); to != string(model.RouterMAC[:]) ||
			!strings.HasSuffix(from, "\x09") {
			t.Errorf("%q to %q", from, to)
		}
		if h.Protocol != tc.protocol || h.ID != 0 && h.ID != 61000 {
			t.Errorf("%+v", h)
		}
	}
}
