package cni

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/knftables"
)

// counting counts writes.
type counting struct {
	*knftables.Fake
	runs int
}

func (c *counting) Run(ctx context.Context, tx *knftables.Transaction) error {
	c.runs++
	return c.Fake.Run(ctx, tx)
}

func TestHostFilter(t *testing.T) {
	nft := &counting{Fake: knftables.NewFake(knftables.InetFamily, HostFilterTable)}
	sync := func(writes int) {
		t.Helper()
		nft.runs = 0
		if err := SyncHostFilter(t.Context(), nft); err != nil {
			t.Fatal(err)
		}
		if nft.runs != writes {
			t.Errorf("%d transactions, want %d", nft.runs, writes)
		}
		want := `add table inet weft-cni { comment "what pods send belongs to Open vSwitch, not to the node's kernel" ; }
add chain inet weft-cni prerouting { type filter hook prerouting priority -450 ; }
add rule inet weft-cni prerouting meta iifgroup { 2003134068 , 2003134069 } counter drop comment "from pods' links (5553f391)"
`
		if diff := cmp.Diff(want, nft.Dump()); diff != "" {
			t.Error(diff)
		}
	}
	sync(1)
	sync(0) // rewriting the rule would reset its counter
	chain := &knftables.Chain{Name: "prerouting"}
	for _, damage := range []func(*knftables.Transaction){
		func(tx *knftables.Transaction) { tx.Flush(chain) },
		func(tx *knftables.Transaction) { tx.Delete(chain) },
		func(tx *knftables.Transaction) { tx.Delete(&knftables.Table{}) },
		func(tx *knftables.Transaction) { tx.Insert(&knftables.Rule{Chain: chain.Name, Rule: "accept"}) },
		func(tx *knftables.Transaction) { tx.Add(&knftables.Rule{Chain: chain.Name, Rule: "accept"}) },
		func(tx *knftables.Transaction) { // as an older Weft wrote it
			tx.Flush(chain)
			tx.Add(&knftables.Rule{Chain: chain.Name, Rule: "counter drop"})
		},
	} {
		tx := nft.NewTransaction()
		damage(tx)
		if err := nft.Run(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		sync(1)
	}
}
