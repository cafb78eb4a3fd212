package programmer_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// TestLargeBundle: no event of a bundle of thousands of flows, which come, change and go, passes for another program's,
// and none costs a reading of the switch. Another program's flow that differs from one of them in the priority alone,
// which events do not tell, is found at once.
func TestLargeBundle(t *testing.T) {
	const nodes = 1500
	peer := func(i, addr int) model.Node {
		return model.Node{Name: fmt.Sprint("peer", i),
			Addrs:    []netip.Addr{netip.AddrFrom4([4]byte{172, byte(addr), byte(i >> 8), byte(i)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i>>8), byte(i), 0}), 24)}}
	}
	synctest.Test(t, func(t *testing.T) {
		sw := ofswitch.NewFake(flows.Check)
		var log bytes.Buffer
		// What is submitted while a bundle is under way goes into the next one.
		slow := slowSwitch{sw, func() { time.Sleep(time.Second) }}
		loop := programmer.New(programmer.Options{Node: "n1", Switch: slow, Log: slog.New(slog.NewTextHandler(&log, nil))})
		loop.Submit(state.SetNode{Node: node("n1", 1)})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = loop.Run(ctx) }()
		time.Sleep(10 * time.Second)
		readings := sw.Dumps()
		for step, change := range []func(int) state.Change{
			func(i int) state.Change { return state.SetNode{Node: peer(i, 20)} },
			func(i int) state.Change { return state.SetNode{Node: peer(i, 21)} },
			func(i int) state.Change { return state.DeleteNode{Name: peer(i, 21).Name} },
			func(i int) state.Change { return state.SetNode{Node: peer(i, 22)} },
		} {
			loop.Submit(state.SetNode{Node: node("n2", byte(10+step))})
			time.Sleep(500 * time.Millisecond) // the loop sends this one
			for i := range nodes {
				loop.Submit(change(i))
			}
			time.Sleep(5 * time.Second)
		}
		synctest.Wait()
		largest, flow := 0, openflow.Flow{}
		for _, d := range sw.Applied() {
			if n := len(d.Set); n >= largest {
				largest, flow = n, d.Set[0]
			}
		}
		if largest <= 4096 {
			t.Fatalf("the largest bundle has %d flows: this test tests nothing", largest)
		}
		if strings.Contains(log.String(), "another program") || strings.Contains(log.String(), "repairing") {
			t.Errorf("own changes pass for another program's:\n%s", log.String())
		}
		if n := sw.Dumps() - readings; n > 0 {
			t.Errorf("%d readings of the switch", n)
		}
		flow.Priority, flow.Cookie = 65535, 0
		sw.Put(flow)
		time.Sleep(2 * time.Second)
		if s := loop.Status(); s.ForeignFlows != 1 {
			t.Errorf("%d foreign flows were found within two seconds, want 1", s.ForeignFlows)
		}
		stop()
		<-ended
	})
}
