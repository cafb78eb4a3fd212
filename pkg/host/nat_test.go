package host

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/knftables"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func dualStack() Desired {
	return Desired{
		Gateway:        "weft0",
		MTU:            1450,
		PodCIDRs:       prefixes("10.244.1.0/24", "fd00:10:1::/64"),
		RemotePodCIDRs: prefixes("10.244.2.0/24", "fd00:10:2::/64", "10.244.3.0/24", "fd00:10:3::/64"),
		Masquerade:     true,
		NoMasquerade:   prefixes("192.168.0.0/16", "10.244.2.0/25", "198.51.100.7/32"),
	}
}

// counting counts the transactions that are run.
type counting struct {
	knftables.Interface
	runs int
	last string
}

func (c *counting) Run(ctx context.Context, tx *knftables.Transaction) error {
	c.runs++
	c.last = tx.String()
	return c.Interface.Run(ctx, tx)
}

func syncNAT(t *testing.T, n *nat, d Desired) []string {
	t.Helper()
	c := &changes{}
	if err := n.sync(t.Context(), c, d); err != nil {
		t.Fatal(err)
	}
	return c.list
}

func TestNATTable(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, tableName)
	syncNAT(t, &nat{nft: fake}, dualStack())
	want := strings.TrimLeft(`
add table inet weft { comment "Weft pod network; made anew when changed" ; }
add chain inet weft postrouting { type nat hook postrouting priority 100 ; }
add set inet weft direct-v4 { type ipv4_addr ; flags interval ; }
add set inet weft direct-v6 { type ipv6_addr ; flags interval ; }
add rule inet weft postrouting oifname "weft0" ip saddr != 10.244.1.1 ip daddr != 10.244.1.0/24 fib saddr type local snat ip to 10.244.1.1 fully-random comment "node to remote pods: from the gateway address (HASH)"
add rule inet weft postrouting ip saddr 10.244.1.0/24 oifname != "weft0" udp dport { 4789 , 6081 } drop comment "pods to tunnel ports: never (HASH)"
add rule inet weft postrouting ip saddr 10.244.1.0/24 oifname != "weft0" ip daddr != @direct-v4 masquerade fully-random comment "pods to the world: from the node's address (HASH)"
add rule inet weft postrouting oifname "weft0" ip6 saddr != fd00:10:1::1 ip6 daddr != fd00:10:1::/64 fib saddr type local snat ip6 to fd00:10:1::1 fully-random comment "node to remote pods: from the gateway address (HASH)"
add rule inet weft postrouting ip6 saddr fd00:10:1::/64 oifname != "weft0" udp dport { 4789 , 6081 } drop comment "pods to tunnel ports: never (HASH)"
add rule inet weft postrouting ip6 saddr fd00:10:1::/64 oifname != "weft0" ip6 daddr != @direct-v6 masquerade fully-random comment "pods to the world: from the node's address (HASH)"
add element inet weft direct-v4 { 10.244.1.0/24 }
add element inet weft direct-v4 { 10.244.2.0/24 }
add element inet weft direct-v4 { 10.244.3.0/24 }
add element inet weft direct-v4 { 192.168.0.0/16 }
add element inet weft direct-v4 { 198.51.100.7 }
add element inet weft direct-v6 { fd00:10:1::/64 }
add element inet weft direct-v6 { fd00:10:2::/64 }
add element inet weft direct-v6 { fd00:10:3::/64 }
`, "\n")
	if diff := cmp.Diff(want, hideHashes(fake.Dump())); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
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

func TestNATSingleFamilyWithoutMasquerade(t *testing.T) {
	d := dualStack()
	d.PodCIDRs, d.Masquerade = d.PodCIDRs[:1], false
	fake := knftables.NewFake(knftables.InetFamily, tableName)
	syncNAT(t, &nat{nft: fake}, d)
	got := fake.Dump()
	if strings.Contains(got, "ip6 ") || strings.Contains(got, "masquerade fully-random") || !strings.Contains(got, "snat ip to 10.244.1.1") {
		t.Errorf("want only the node's own traffic to remote pods translated, and only IPv4:\n%s", got)
	}
}

func TestNATIsSilentWhenRight(t *testing.T) {
	nft := &counting{Interface: knftables.NewFake(knftables.InetFamily, tableName)}
	syncNAT(t, &nat{nft: nft}, dualStack())
	nft.runs = 0
	if changed := syncNAT(t, &nat{nft: nft}, dualStack()); len(changed) > 0 || nft.runs > 0 {
		t.Errorf("changed %q in %d transactions, want nothing", changed, nft.runs)
	}
}

// A node that comes or goes costs its elements, and no rule is touched.
func TestNATElementWise(t *testing.T) {
	nft := &counting{Interface: knftables.NewFake(knftables.InetFamily, tableName)}
	n := &nat{nft: nft}
	syncNAT(t, n, dualStack())
	d := dualStack()
	d.RemotePodCIDRs = prefixes("10.244.2.0/24", "fd00:10:2::/64", "10.244.4.0/24", "fd00:10:4::/64")
	syncNAT(t, n, d)
	want := strings.TrimLeft(`
delete element inet weft direct-v4 { 10.244.3.0/24 }
add element inet weft direct-v4 { 10.244.4.0/24 }
delete element inet weft direct-v6 { fd00:10:3::/64 }
add element inet weft direct-v6 { fd00:10:4::/64 }
`, "\n")
	if diff := cmp.Diff(want, nft.last); diff != "" {
		t.Errorf("transaction (-want +got):\n%s", diff)
	}
}

// The fake does not replace or delete a chain that is in use, so damage is done the ways it allows; the integration test
// does the rest to the kernel.
func TestNATRepair(t *testing.T) {
	ctx := t.Context()
	for what, damage := range map[string]func(*knftables.Transaction){
		"table deleted": func(tx *knftables.Transaction) { tx.Delete(&knftables.Table{}) },
		"chain flushed": func(tx *knftables.Transaction) { tx.Flush(&knftables.Chain{Name: chainName}) },
		"set flushed":   func(tx *knftables.Transaction) { tx.Flush(&knftables.Set{Name: "direct-v4"}) },
		"rule added":    func(tx *knftables.Transaction) { tx.Insert(&knftables.Rule{Chain: chainName, Rule: "accept"}) },
		"element added": func(tx *knftables.Transaction) {
			tx.Add(&knftables.Element{Set: "direct-v4", Key: []string{"8.8.8.8"}})
		},
		"element lost": func(tx *knftables.Transaction) {
			tx.Delete(&knftables.Element{Set: "direct-v6", Key: []string{"fd00:10:2::/64"}})
		},
		"agent upgraded": func(tx *knftables.Transaction) {
			tx.Add(&knftables.Rule{Chain: chainName, Rule: "accept", Comment: knftables.PtrTo("pods to the world (old)")})
		},
	} {
		fake := knftables.NewFake(knftables.InetFamily, tableName)
		n := &nat{nft: fake}
		syncNAT(t, n, dualStack())
		right := fake.Dump()
		tx := fake.NewTransaction()
		damage(tx)
		if err := fake.Run(ctx, tx); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if changed := syncNAT(t, n, dualStack()); len(changed) == 0 {
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
	n := &nat{nft: fake}
	syncNAT(t, n, dualStack())
	d := dualStack()
	d.PodCIDRs = prefixes("10.244.9.0/24", "fd00:10:9::/64")
	syncNAT(t, n, d)
	if got := fake.Dump(); strings.Contains(got, "10.244.1.") || strings.Contains(got, "fd00:10:1:") || !strings.Contains(got, "snat ip to 10.244.9.1") {
		t.Errorf("the table still knows the old pod CIDRs:\n%s", got)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		change func(*Desired)
		want   string
	}{
		{func(d *Desired) { d.Gateway = "" }, "the gateway interface has no name"},
		{func(d *Desired) { d.PodCIDRs = prefixes("10.244.1.5/24") }, "10.244.1.5/24 is not a masked prefix"},
		{func(d *Desired) { d.PodCIDRs = prefixes("10.244.1.0/24", "10.244.2.0/24") }, "two pod CIDRs of one family, 10.244.1.0/24 and 10.244.2.0/24"},
		{func(d *Desired) { d.NoMasquerade = []netip.Prefix{{}} }, "is not a masked prefix"},
	} {
		d := dualStack()
		tt.change(&d)
		if err := d.check(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want one with %q", err, tt.want)
		}
	}
}
