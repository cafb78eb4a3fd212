package host

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/knftables"
)

func TestFilterPodLinks(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, tableName)
	nft := &counting{Interface: fake}
	const want = `add table inet weft
add chain inet weft from-pod-links { type filter hook prerouting priority -450 ; }
add rule inet weft from-pod-links meta iifgroup { 2003134068 , 2003134069 } counter drop comment "from pods' links (5553f391)"
`
	filter := func(writes int) {
		t.Helper()
		nft.runs = 0
		// A new agent each time.
		if err := newNAT(nft, nil).filterPodLinks(t.Context()); err != nil {
			t.Fatal(err)
		}
		if nft.runs != writes {
			t.Errorf("%d transactions, want %d", nft.runs, writes)
		}
	}
	filter(1)
	filter(0) // rewriting the rule would reset its counter
	chain := &knftables.Chain{Name: podLinksChain}
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
		if err := nft.Interface.Run(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		filter(1)
		if diff := cmp.Diff(want, fake.Dump()); diff != "" {
			t.Error(diff)
		}
	}

	syncNAT(t, newNAT(nft, nil), withServices())
	right := fake.Dump()
	filter(0)
	tx := nft.NewTransaction()
	tx.Flush(chain)
	if err := nft.Interface.Run(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	filter(1)
	if diff := cmp.Diff(sortedLines(right), sortedLines(fake.Dump())); diff != "" {
		t.Errorf("the rest of the table (-want +got):\n%s", diff)
	}
}

// rejecting fails all transactions with elements.
type rejecting struct{ knftables.Interface }

func (r rejecting) Run(ctx context.Context, tx *knftables.Transaction) error {
	if strings.Contains(tx.String(), "element") {
		return errors.New("rejected")
	}
	return r.Interface.Run(ctx, tx)
}

// TestFilterStandsAlone: pods' packets are kept from the node's kernel also when the table cannot be written.
func TestFilterStandsAlone(t *testing.T) {
	for name, d := range map[string]Desired{"rejected by nft": withServices(), "invalid": {}} {
		fake := knftables.NewFake(knftables.InetFamily, tableName)
		h := New(rejecting{fake}, t.TempDir(), slog.New(slog.DiscardHandler))
		h.nft.layout = nil
		if _, err := h.Sync(t.Context(), d); err == nil {
			t.Fatalf("%s: no error", name)
		}
		if !strings.Contains(fake.Dump(), "from pods' links") {
			t.Errorf("%s: no filter:\n%s", name, fake.Dump())
		}
	}
}
