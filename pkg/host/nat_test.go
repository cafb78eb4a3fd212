package host

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/knftables"

	"github.com/weft-cni/weft/internal/testing/golden"
	"github.com/weft-cni/weft/pkg/model"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// peers is a path to these pod CIDRs of a node with these addresses.
func peers(addrs []netip.Addr, podCIDRs ...string) []model.Path {
	return []model.Path{{PodCIDRs: prefixes(podCIDRs...), Addrs: addrs}}
}

// setPeerPodCIDRs replaces the pod CIDRs of the peer node, and keeps its addresses.
func (d *Desired) setPeerPodCIDRs(podCIDRs ...string) { d.Peers = peers(d.Peers[0].Addrs, podCIDRs...) }

// addPeer puts a node without addresses before the other ones.
func (d *Desired) addPeer(podCIDR string) { d.Peers = append(peers(nil, podCIDR), d.Peers...) }

func dualStack() Desired {
	return Desired{
		Gateway:        "weft0",
		MTU:            1450,
		KernelDatapath: true,
		Address:        netip.MustParseAddr("192.0.2.1"),
		PodCIDRs:       prefixes("10.244.1.0/24", "fd00:10:1::/64"),
		Peers: peers(addrs("192.0.2.12", "192.0.2.13", "2001:db8::12", "2001:db8::13"),
			"10.244.2.0/24", "fd00:10:2::/64", "10.244.3.0/24", "fd00:10:3::/64"),
		Masquerade:   true,
		NoMasquerade: prefixes("192.168.0.0/16", "10.244.2.0/25", "198.51.100.7/32"),
	}
}

// withServices is dualStack with an example of each input for Services.
func withServices() Desired {
	d := dualStack()
	d.ServiceCIDRs = prefixes("10.96.0.0/16", "fd00:96::/112")
	d.ServicePorts = ports("198.51.100.80:80", "198.51.100.80:53/UDP", "[2001:db8:80::1]:80")
	d.NodePorts = []NodePort{
		{Protocol: model.TCP, Port: 30080}, {IPv6: true, Protocol: model.TCP, Port: 30080},
		{Protocol: model.UDP, Port: 30053}, {IPv6: true, Protocol: model.SCTP, Port: 30100},
	}
	to := netip.MustParseAddrPort
	d.HostPorts = []HostPort{
		{Protocol: model.TCP, Port: 18080, To: to("10.244.1.7:80")}, {Protocol: model.TCP, Port: 18080,
			To: to("[fd00:10:1::7]:80")},
		{Protocol: model.UDP, Port: 18053, To: to("10.244.1.7:53")},
		{Addr: netip.MustParseAddr("192.0.2.50"), Protocol: model.TCP, Port: 18081, To: to("10.244.1.7:81")},
		{Addr: netip.MustParseAddr("2001:db8::50"), Protocol: model.TCP, Port: 18081, To: to("[fd00:10:1::7]:81")},
	}
	d.ExternalIPs = []ExternalIP{
		{Addr: netip.MustParseAddr("198.51.100.80"), Protocol: model.TCP, Port: 80,
			To: netip.MustParseAddrPort("169.254.87.1:30080")},
		{Addr: netip.MustParseAddr("198.51.100.80"), Protocol: model.UDP, Port: 53,
			To: netip.MustParseAddrPort("10.96.0.10:53")},
		{Addr: netip.MustParseAddr("2001:db8:80::1"), Protocol: model.TCP, Port: 80,
			To: netip.MustParseAddrPort("[fd57:6566:7400::1]:30080")},
	}
	d.sortServices() // as Sync does
	sortPorts(&d.HostPorts)
	return d
}

// ports are TCP ports unless they name another protocol.
func ports(list ...string) []ServicePort {
	var out []ServicePort
	for _, s := range list {
		at, udp := strings.CutSuffix(s, "/UDP")
		a := netip.MustParseAddrPort(at)
		p := ServicePort{Addr: a.Addr(), Protocol: model.TCP, Port: a.Port()}
		if udp {
			p.Protocol = model.UDP
		}
		out = append(out, p)
	}
	return out
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// counting counts transactions and list requests.
type counting struct {
	knftables.Interface
	runs, lists int
	last        string
}

func (c *counting) ListRules(ctx context.Context, chain string) ([]*knftables.Rule, error) {
	c.lists++
	return c.Interface.ListRules(ctx, chain)
}

func (c *counting) ListElements(ctx context.Context, kind, name string) ([]*knftables.Element, error) {
	c.lists++
	return c.Interface.ListElements(ctx, kind, name)
}

func (c *counting) Run(ctx context.Context, tx *knftables.Transaction) error {
	c.runs++
	c.last = tx.String()
	return c.Interface.Run(ctx, tx)
}

func syncNAT(t *testing.T, n *nat, d Desired) []string {
	t.Helper()
	c := &changes{}
	if err := n.sync(t.Context(), c, d, true); err != nil {
		t.Fatal(err)
	}
	return c.list
}

// TestNATTable writes the table for each file of testdata/tables.txtar.
func TestNATTable(t *testing.T) {
	ipv4 := dualStack()
	ipv4.PodCIDRs, ipv4.Masquerade = ipv4.PodCIDRs[:1], false
	strict := dualStack()
	strict.WireGuard, strict.Strict = &WireGuard{Port: 51871}, true
	strict.Peers[0].Routed = model.ModeWireGuard
	ipip := dualStack()
	ipip.IPIP = true
	ipip.Peers[0].ReceivesIPIP, ipip.Peers[0].Routed, ipip.Peers[0].NextHop = true, model.ModeIPIP, ipip.Peers[0].Addrs[0]
	cases := map[string]Desired{
		"ipip":                            ipip,
		"encrypted-strictly":              strict,
		"dual-stack":                      withServices(),
		"single-stack-without-masquerade": ipv4,
		"no-pod-cidrs":                    {Gateway: "weft0", Masquerade: true},
	}
	const file = "testdata/tables.txtar"
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range archive.Files {
		d, ok := cases[f.Name]
		if !ok {
			t.Fatalf("%s has %q, which is not a case", file, f.Name)
		}
		delete(cases, f.Name)
		fake := knftables.NewFake(knftables.InetFamily, tableName)
		syncNAT(t, newNAT(fake, nil), d)
		golden.Section(t, &archive.Files[i], hideHashes(fake.Dump()))
	}
	if len(cases) > 0 {
		t.Errorf("%s lacks %q", file, slices.Collect(maps.Keys(cases)))
	}
	golden.Save(t, file, archive)
}

// hideHashes replaces the hash at the end of each comment.
func hideHashes(dump string) string {
	lines := strings.Split(dump, "\n")
	for i, l := range lines {
		if end, ok := strings.CutSuffix(l, `)"`); ok {
			lines[i] = end[:len(end)-8] + `HASH)"`
		}
	}
	return strings.Join(lines, "\n")
}

func TestNATIsSilentWhenRight(t *testing.T) {
	nft := &counting{Interface: knftables.NewFake(knftables.InetFamily, tableName)}
	syncNAT(t, newNAT(nft, nil), withServices())
	nft.runs = 0
	if changed := syncNAT(t, newNAT(nft, nil), withServices()); len(changed) > 0 || nft.runs > 0 {
		t.Errorf("changed %q in %d transactions, want nothing", changed, nft.runs)
	}
}

// A node that joins or leaves changes its elements, and no rule.
func TestNATElementWise(t *testing.T) {
	nft := &counting{Interface: knftables.NewFake(knftables.InetFamily, tableName)}
	n := newNAT(nft, nil)
	syncNAT(t, n, dualStack())
	d := dualStack()
	d.setPeerPodCIDRs("10.244.2.0/24", "fd00:10:2::/64", "10.244.4.0/24", "fd00:10:4::/64")
	syncNAT(t, n, d)
	want := strings.TrimLeft(`
delete element inet weft pods-v4 { 10.244.3.0/24 }
add element inet weft pods-v4 { 10.244.4.0/24 }
delete element inet weft pods-v6 { fd00:10:3::/64 }
add element inet weft pods-v6 { fd00:10:4::/64 }
delete element inet weft direct-v4 { 10.244.3.0/24 }
add element inet weft direct-v4 { 10.244.4.0/24 }
delete element inet weft direct-v6 { fd00:10:3::/64 }
add element inet weft direct-v6 { fd00:10:4::/64 }
`, "\n")
	if diff := cmp.Diff(want, nft.last); diff != "" {
		t.Errorf("transaction (-want +got):\n%s", diff)
	}
}

// The fake does not replace or delete a chain in use, so damage is limited to what it allows; the integration test
// damages the kernel's table in the other ways.
func TestNATRepair(t *testing.T) {
	ctx := t.Context()
	for what, damage := range map[string]func(*knftables.Transaction){
		"table deleted": func(tx *knftables.Transaction) { tx.Delete(&knftables.Table{}) },
		"chain flushed": func(tx *knftables.Transaction) { tx.Flush(&knftables.Chain{Name: postroutingChain}) },
		"set flushed":   func(tx *knftables.Transaction) { tx.Flush(&knftables.Set{Name: "direct-v4"}) },
		"rule added": func(tx *knftables.Transaction) {
			tx.Insert(&knftables.Rule{Chain: postroutingChain, Rule: "accept"})
		},
		"element added": func(tx *knftables.Transaction) {
			tx.Add(&knftables.Element{Set: "direct-v4", Key: []string{"8.8.8.8"}})
		},
		"element lost": func(tx *knftables.Transaction) {
			tx.Delete(&knftables.Element{Set: "direct-v6", Key: []string{"fd00:10:2::/64"}})
		},
		"element led elsewhere": func(tx *knftables.Transaction) {
			tx.Add(&knftables.Element{Map: "external-v4", Key: []string{"198.51.100.80", "tcp", "80"},
				Value: []string{"10.96.0.10", "80"}})
		},
		"node port lost": func(tx *knftables.Transaction) {
			tx.Delete(&knftables.Element{Map: "node-ports-v6", Key: []string{"sctp", "30100"}})
		},
		"invalid port in an element": func(tx *knftables.Transaction) {
			tx.Add(&knftables.Element{Map: "node-ports-v4", Key: []string{"icmp", "8"}, Value: []string{"169.254.87.1", "8"}})
		},
		"foreign chain": func(tx *knftables.Transaction) {
			tx.Add(&knftables.Chain{Name: "theirs"})
			tx.Add(&knftables.Rule{Chain: "theirs", Rule: "accept"})
		},
		"agent upgraded": func(tx *knftables.Transaction) {
			tx.Add(&knftables.Rule{Chain: postroutingChain, Rule: "accept", Comment: knftables.PtrTo("pods to the world (old)")})
		},
	} {
		fake := knftables.NewFake(knftables.InetFamily, tableName)
		n := newNAT(fake, nil)
		syncNAT(t, n, withServices())
		right := fake.Dump()
		tx := fake.NewTransaction()
		damage(tx)
		if err := fake.Run(ctx, tx); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if changed := syncNAT(t, n, withServices()); len(changed) == 0 {
			t.Errorf("%s: not noticed", what)
		}
		if diff := cmp.Diff(sortedLines(right), sortedLines(fake.Dump())); diff != "" {
			t.Errorf("%s: not repaired (-want +got):\n%s", what, diff)
		}
	}
}

// sortedLines makes dumps comparable whose sets were filled in another order.
func sortedLines(dump string) []string { return slices.Sorted(strings.SplitSeq(dump, "\n")) }

func TestNATRulesFollowPodCIDR(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, tableName)
	n := newNAT(fake, nil)
	syncNAT(t, n, withServices())
	d := dualStack()
	d.PodCIDRs = prefixes("10.244.9.0/24", "fd00:10:9::/64")
	syncNAT(t, n, d)
	if got := fake.Dump(); strings.Contains(got, "10.244.1.") || strings.Contains(got, "fd00:10:1:") ||
		!strings.Contains(got, "snat ip to 10.244.9.1") {
		t.Errorf("the table still knows the old pod CIDRs:\n%s", got)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		change func(*Desired)
		want   string
	}{
		{func(d *Desired) { d.Gateway = "" }, "the gateway interface has no name"},
		{func(d *Desired) { d.PodCIDRs = prefixes("10.244.1.5/24") }, "invalid CIDR 10.244.1.5/24: not a masked prefix"},
		{func(d *Desired) { d.PodCIDRs = prefixes("10.244.1.0/24", "10.244.2.0/24") },
			"two pod CIDRs of one family, 10.244.1.0/24 and 10.244.2.0/24"},
		{func(d *Desired) { d.NoMasquerade = []netip.Prefix{{}} }, "not a masked prefix"},
	} {
		d := dualStack()
		tt.change(&d)
		if err := d.check(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want one with %q", err, tt.want)
		}
	}
}
