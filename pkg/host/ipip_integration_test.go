//go:build integration

package host

import (
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// ipipNode is a node with this number, which knows the other one, over an underlay of IPv4 or IPv6.
func ipipNode(number, other int, over4 bool) Desired {
	underlay := map[bool]string{true: "192.0.2.", false: "2001:db8::"}[over4]
	local, next := netip.MustParseAddr(underlay+strconv.Itoa(number)), netip.MustParseAddr(underlay+strconv.Itoa(other))
	cidrs := func(n int) []netip.Prefix {
		return prefixes(fmt.Sprintf("10.244.%d.0/24", n), fmt.Sprintf("fd00:10:%d::/64", n))
	}
	return Desired{
		Gateway: "weft0", MTU: 1500 - model.IPIP.Overhead(local), Address: local, PodCIDRs: cidrs(number), IPIP: true,
		Peers: []model.Path{{PodCIDRs: cidrs(other), Addrs: []netip.Addr{next}, Local: local, NextHop: next,
			Routed: model.ModeIPIP, ReceivesIPIP: true}},
	}
}

// TestIPIP: two nodes reach each other's pods' ranges in IPIP, in both families over both, with packets of the whole
// MTU. What arrives from a node with a source of another one, or from a stranger, is dropped and counted.
// Devices follow the node's address and end when nothing asks for them; one of another program stays. A kernel without
// IPIP is named, and leads packets nowhere else.
func TestIPIP(t *testing.T) {
	n := newNode(t)
	nft, err := NFTables()
	if err != nil {
		t.Fatal(err)
	}
	other := New(nft, "/proc/sys", slog.New(slog.NewTextHandler(t.Output(), nil)))
	n.in(n.out, func() {
		n.run("ip link set lo up; ip link set out0 up; ip addr add 192.0.2.2/24 dev out0; ip -6 addr add 2001:db8::2/64 dev out0 nodad")
		n.link("weft0", "switch1", n.pods)
	})
	for _, over4 := range []bool{true, false} {
		d, peer := ipipNode(1, 2, over4), ipipNode(2, 1, over4)
		done, err := n.h.Sync(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		chain := n.run("nft list chain inet weft entered")
		for _, set := range []string{"@ipip4-", "@ipip6-"} {
			if set += map[bool]string{true: "v4", false: "v6"}[over4]; !strings.Contains(chain, set) {
				t.Errorf("no rule has %s:\n%s", set, chain)
			}
		}
		if changed := n.sync(d); len(changed) > 0 {
			t.Errorf("then changed %q", changed)
		}
		if done.IPIP != nil {
			if !strings.Contains(done.IPIP.Error(), "this node's kernel has no IPIP device of the type") {
				t.Fatal(done.IPIP)
			}
			if got := n.peerRoutes(); !strings.Contains(got, "unreachable 10.244.2.0/24\n") {
				t.Errorf("without a device:\n%s", got)
			}
			continue
		}
		n.in(n.out, func() {
			if done, err := other.Sync(t.Context(), peer); err != nil || done.IPIP != nil || done.Unrouted != nil {
				t.Fatal(err, done.IPIP, done.Unrouted)
			}
		})
		for _, to := range []string{"10.244.2.1", "fd00:10:2::1"} {
			header := map[bool]int{true: 28, false: 48}[to[0] == '1']
			out := n.run(fmt.Sprintf("ping -c3 -i0.2 -W2 -M do -s %d %s; true", d.MTU-header, to))
			if !strings.Contains(out, "3 packets transmitted, 3 received") {
				t.Errorf("over IPv4 %v, to %s: %s\n%s", over4, to, out, n.run("ip -d link; ip route; ip -6 route; nft list ruleset"))
			}
		}
		n.forgedIPIP(over4)
	}
	if len(n.devices()) > 0 { // which the kernel has
		n.run("ip link add mine type ipip local 192.0.2.1 remote 192.0.2.99")
		d := ipipNode(1, 2, true)
		n.sync(d)
		if got, want := n.devices(), []string{"mine", model.IPIPName, model.SITName}; !slices.Equal(got, want) {
			t.Errorf("devices %v, want %v", got, want)
		}
		n.run("ip addr add 192.0.2.5/24 dev eth0")
		d.Address, d.Peers[0].Local = netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("192.0.2.5")
		n.sync(d)
		if got := n.run("ip -d link show " + model.IPIPName); !strings.Contains(got, "local 192.0.2.5 ") {
			t.Errorf("with another address of the node: %s", got)
		}
		d.IPIP, d.Peers[0].Routed, d.Peers[0].ReceivesIPIP = false, "", false
		n.sync(d)
		if got := n.devices(); !slices.Equal(got, []string{"mine"}) {
			t.Errorf("when nothing asks for them, devices %v", got)
		}
	}
}

// devices are Weft's of IPIP, and "mine".
func (n *node) devices() (names []string) {
	for _, line := range strings.Split(n.run("ip -brief link"), "\n") {
		name, _, _ := strings.Cut(line, "@")
		if name == "mine" || model.IsIPIPDevice(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

var forgedIPIPCount = regexp.MustCompile(`counter packets (\d+) .*forged: IPIP`)

// forgedIPIP sends from the other node with the source of a third one inside, and from an address that no node has.
func (n *node) forgedIPIP(over4 bool) {
	n.t.Helper()
	counted := func() (sum int) {
		for _, m := range forgedIPIPCount.FindAllStringSubmatch(n.run("nft list chain inet weft entered"), -1) {
			count, _ := strconv.Atoi(m[1]) // digits
			sum += count
		}
		return sum
	}
	n.in(n.out, func() { // whose own rules would correct the source
		n.run("nft 'table inet forge { chain out { type filter hook output priority -350; notrack; }; }'")
	})
	defer n.in(n.out, func() { n.run("nft delete table inet forge") })
	for source, dest := range map[string]string{"10.244.3.7": "10.244.1.1", "fd00:10:3::7": "fd00:10:1::1"} {
		bits := netip.MustParseAddr(source).BitLen()
		before := counted()
		n.in(n.out, func() {
			n.run(fmt.Sprintf("ip addr replace %s/%d dev lo", source, bits))
			n.run(fmt.Sprintf("ping -c3 -i0.2 -W1 -I %s %s; true", source, dest))
		})
		if now := counted(); now != before+3 {
			n.t.Errorf("over IPv4 %v, as %s: %d drops counted, then %d", over4, source, before, now)
		}
	}
	if !over4 {
		return
	}
	before := counted()
	n.in(n.out, func() {
		n.run(`ip addr add 192.0.2.77/24 dev out0; ip link add stranger type ipip local 192.0.2.77 remote 192.0.2.1
ip link set stranger up; ip route replace 10.244.1.1 dev stranger; ping -c3 -i0.2 -W1 -I 10.244.2.1 10.244.1.1; ip link del stranger`)
	})
	if now := counted(); now != before+3 {
		n.t.Errorf("from a stranger: %d drops counted, then %d", before, now)
	}
}
