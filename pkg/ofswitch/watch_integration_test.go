//go:build integration

package ofswitch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// TestWatchFullSwitch: a switch with many flows takes its time to tell of them all, and what a killed watch left behind
// is in no way.
func TestWatchFullSwitch(t *testing.T) {
	ovs, sw := start(t)
	var d openflow.Delta
	for i := range 20000 {
		d.Set = append(d.Set,
			flow(t, fmt.Sprintf("cookie=0x5765000000000001,table=60,priority=5,ip,nw_dst=10.0.%d.%d actions=drop", i>>8,
				i&0xff)))
	}
	if err := sw.Apply(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(ovs.RunDir(), "weft-watch-"+bridge+".ctl"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ready, events, ended := make(chan struct{}), make(chan ofswitch.Event, 10), make(chan error, 1)
	go func() {
		ended <- sw.Watch(t.Context(), func() { close(ready) }, func(e ofswitch.Event) { events <- e })
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	g := group(t, seededGroup)
	if err := sw.Apply(t.Context(), openflow.Delta{Delete: d.Set[7:8], SetGroups: []openflow.Group{g}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if e := wait(t, events); e.Group != g && (!e.Deleted || e.Match != d.Set[7].Match) {
			t.Errorf("event = %+v, want the deleted flow and the new group", e)
		}
	}
}
