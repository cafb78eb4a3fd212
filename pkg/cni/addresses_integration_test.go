//go:build integration

package cni_test

import (
	"testing"

	"github.com/weft-cni/weft/pkg/cni"
)

// TestAddressesGoOn: a new agent continues after the last address of the previous one, although that address is free
// and the highest one in use is lower. When all others are in use, that address is allocated.
func TestAddressesGoOn(t *testing.T) {
	n := newNode(t, "10.20.0.0/29") // .2 to .6 for pods
	list := n.conf("1.0.0", "")
	give := func(want string) *pod {
		t.Helper()
		p := n.pod("web")
		if got := n.mustAdd(list, p).IPs[0].Address.IP.String(); got != want {
			t.Fatalf("address %s, want %s", got, want)
		}
		return p
	}
	give("10.20.0.2")
	freed := give("10.20.0.3")
	n.mustDel(list, freed)
	check(t, n.stop())
	n.start()
	give("10.20.0.4")
	give("10.20.0.5")
	give("10.20.0.6")
	last := give("10.20.0.3")
	_, err := n.add(list, n.pod("one-too-many"))
	wantCode(t, err, cni.ErrPoolExhausted, "10.20.0.0/29")
	n.mustDel(list, last)
	give("10.20.0.3")
}
