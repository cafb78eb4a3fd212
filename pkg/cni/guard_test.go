package cni

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/knftables"
)

func TestGuard(t *testing.T) {
	nft := knftables.NewFake(knftables.InetFamily, GuardTable)
	// Twice is the same as once.
	for range 2 {
		if err := Guard(t.Context(), nft); err != nil {
			t.Fatal(err)
		}
	}
	want := `add table inet weft-cni { comment "what pods send belongs to Open vSwitch, not to the node's kernel" ; }
add chain inet weft-cni prerouting { type filter hook prerouting priority -450 ; }
add rule inet weft-cni prerouting meta iifgroup { 2003134068 , 2003134069 } counter drop
`
	if diff := cmp.Diff(want, nft.Dump()); diff != "" {
		t.Error(diff)
	}
}
