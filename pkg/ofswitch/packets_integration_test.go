//go:build integration

package ofswitch_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
)

// udpPacket is Ethernet, IPv4 and UDP from 10.9.0.1:4660 to 10.9.0.2:53.
const udpPacket = "0a57656674010a580a09000108004500001c00010000401166bc0a0900010a090002" + "1234003500080000"

// TestPackets: a Delta brings the meters that its flows need, also when another program has removed or changed them;
// copies arrive, at most as many as the meter allows.
func TestPackets(t *testing.T) {
	ovs, sw := start(t)
	copying := flow(t,
		"cookie=0x5765060000000001,table=51,priority=140,udp,nw_src=10.9.0.1 "+
			"actions=controller(max_len=128,userdata=58.32.01.ff.ff.ff.ff,meter_id=22373)")
	begin := flow(t, "cookie=0x5765010000000001,table=0,priority=1,ip actions=goto_table:51")
	if err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{copying, begin},
		Meters: flows.Meters}); err != nil {
		t.Fatal(err)
	}
	meters := func() []openflow.Meter {
		out, err := ovs.Run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "dump-meters", bridge)
		if err != nil {
			t.Fatal(err)
		}
		return openflow.ParseMeters(out)
	}
	if got := meters(); !slices.Equal(got, flows.Meters) {
		t.Fatalf("before flows that copy the switch got the meters %v, want %v", got, flows.Meters)
	}
	slow := openflow.Meter{ID: flows.MeterDenied.ID, Rate: 1, Burst: 1}
	if err := sw.SetMeters(t.Context(), []openflow.Meter{slow}); err != nil {
		t.Fatal(err)
	}
	if got := meters(); !slices.Contains(got, slow) {
		t.Fatalf("a meter that differs was left alone: %v", got)
	}

	packets, ended := make(chan openflow.PacketIn, 100), make(chan error, 1)
	go func() { ended <- sw.Packets(t.Context(), func(p openflow.PacketIn) { packets <- p }) }()
	send := func() {
		if _, err := ovs.Run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "packet-out", bridge,
			"in_port=LOCAL,packet="+udpPacket+",actions=resubmit(,0)"); err != nil {
			t.Fatal(err)
		}
	}
	var got openflow.PacketIn
	sent := 0
	for deadline := time.Now().Add(20 * time.Second); got.Cookie == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no copy arrived")
		}
		send() // the listener takes a moment to be there
		sent++
		select {
		case got = <-packets:
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if got.Table != 51 || got.Cookie != copying.Cookie || got.Protocol != "udp" || got.Source.String() != "10.9.0.1" ||
		got.Destination.String() != "10.9.0.2" || got.SourcePort != 0x1234 || got.DestinationPort != 53 {
		t.Errorf("the copy reads %+v", got)
	}
	if d, ok := flows.DecisionOf(got); !ok || d != (flows.Rule{Direction: model.Egress, Index: flows.Isolation,
		Verdict: model.Deny}) {
		t.Errorf("the copy means %+v, %v", d, ok)
	}

	begun := time.Now()
	for range 20 {
		send()
		sent++
	}
	held := uint64(0)
	testenv.Eventually(t, 10*time.Second, func() error {
		all, err := sw.HeldBack(t.Context())
		if held = all[slow.ID]; err == nil && held == 0 {
			err = fmt.Errorf("the meter counts %v, want what it holds back", all)
		}
		return err
	})
	// Until now, for on a busy machine the switch is behind with what was sent.
	seconds := int(time.Since(begun).Seconds()) + 1
	if came := len(packets); came > seconds+1 || int(held) > sent {
		t.Errorf("%d copies came in %d s at one a second, %d of %d were held back", came, seconds, held, sent)
	}

	// Without its meter, OVS would send every packet.
	if _, err := ovs.Run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "del-meters", bridge); err != nil {
		t.Fatal(err)
	}
	if err := sw.Apply(t.Context(), openflow.Delta{Set: []openflow.Flow{copying}, Meters: flows.Meters}); err != nil {
		t.Fatal(err)
	}
	if got := meters(); !slices.Equal(got, flows.Meters) {
		t.Errorf("the switch has the meters %v, want %v", got, flows.Meters)
	}
}

func TestNoPacketsFromASwitchThatIsNotThere(t *testing.T) {
	sw := ofswitch.New(t.TempDir(), t.TempDir(), "none", ofswitch.Kernel)
	if err := sw.Packets(t.Context(), func(openflow.PacketIn) {}); err == nil {
		t.Error("listening for packets of a bridge that does not exist gave no error")
	}
}
