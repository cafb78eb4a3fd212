//go:build integration

package ofswitch_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/ofswitch"
)

// TestEnsureFragments: the limits are as wide as Open vSwitch lets them be, and come back one by one and after a
// restart of ovs-vswitchd.
func TestEnsureFragments(t *testing.T) {
	ovs, sw := start(t)
	ensure := func(want int) {
		t.Helper()
		changed, err := sw.EnsureFragments(t.Context())
		if err != nil || len(changed) != want {
			t.Fatalf("EnsureFragments changed %q, %v; want %d changes", changed, err, want)
		}
	}
	run := func(argv ...string) string {
		t.Helper()
		out, err := ovs.Run(t.Context(), argv[0], argv[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	right := func() {
		t.Helper()
		status := run("ovs-appctl", "dpctl/ipf-get-status", "netdev@ovs-netdev")
		for _, line := range []string{"v4 enabled: 1", "v6 enabled: 1", "min v4 frag size: 400", "min v6 frag size: 400", "max num frags (v4/v6): 5000"} {
			if !strings.Contains(status, line) {
				t.Errorf("the status lacks %q:\n%s", line, status)
			}
		}
		if mode := strings.TrimSpace(run("ovs-ofctl", "get-frags", bridge)); mode != "nx-match" {
			t.Errorf("fragments are handled as %q", mode)
		}
	}
	ensure(4) // the mode, two sizes and the number
	right()
	ensure(0)
	run("ovs-ofctl", "set-frags", bridge, "drop")
	ensure(1)
	run("ovs-appctl", "dpctl/ipf-set-min-frag", "netdev@ovs-netdev", "v6", "1280")
	run("ovs-appctl", "dpctl/ipf-set-disabled", "netdev@ovs-netdev", "v4")
	ensure(2)
	right()
	if err := ovs.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	if _, err := sw.EnsureFragments(t.Context()); err == nil {
		t.Error("no error while ovs-vswitchd is away")
	}
	if err := ovs.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	ensure(4)
	right()
}

// TestEnsureLiberal: the check of TCP windows stays off when somebody turns it on, and after a restart of ovs-vswitchd.
func TestEnsureLiberal(t *testing.T) {
	ovs, sw := start(t)
	for _, disturb := range []func() error{
		func() error { return nil },
		func() error {
			_, err := ovs.Run(t.Context(), "ovs-appctl", "dpctl/ct-enable-tcp-seq-chk", "netdev@ovs-netdev")
			return err
		},
		func() error { return errors.Join(ovs.StopDaemon(), ovs.StartDaemon(t.Context())) },
	} {
		if err := disturb(); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{1, 0} {
			if changed, err := sw.EnsureLiberal(t.Context()); err != nil || len(changed) != want {
				t.Errorf("EnsureLiberal changed %q, %v; want %d changes", changed, err, want)
			}
		}
		if out, err := ovs.Run(t.Context(), "ovs-appctl", "dpctl/ct-get-tcp-seq-chk", "netdev@ovs-netdev"); err != nil || !strings.Contains(out, "disabled") {
			t.Errorf("%q, %v", out, err)
		}
	}
}

// TestEnsureZoneLimit: a zone's limit comes back when somebody changes it, and after a restart of ovs-vswitchd.
func TestEnsureZoneLimit(t *testing.T) {
	ovs, sw := start(t)
	for _, disturb := range []func() error{
		func() error { return nil },
		func() error {
			_, err := ovs.Run(t.Context(), "ovs-appctl", "dpctl/ct-set-limits", "netdev@ovs-netdev", "zone=7,limit=99")
			return err
		},
		func() error { return errors.Join(ovs.StopDaemon(), ovs.StartDaemon(t.Context())) },
	} {
		if err := disturb(); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{1, 0} {
			if changed, err := sw.EnsureZoneLimit(t.Context(), 7, 9); err != nil || len(changed) != want {
				t.Errorf("EnsureZoneLimit changed %q, %v; want %d changes", changed, err, want)
			}
		}
		if out, err := ovs.Run(t.Context(), "ovs-appctl", "dpctl/ct-get-limits", "netdev@ovs-netdev", "zone=7"); err != nil || !strings.Contains(out, "zone=7,limit=9,") {
			t.Errorf("%q, %v", out, err)
		}
	}
}

// TestOccupancy: the numbers are those of the datapath.
func TestOccupancy(t *testing.T) {
	ovs, sw := start(t)
	if o, err := sw.Occupancy(t.Context()); err != nil || o.CacheLimit == 0 || o.ConnectionLimit == 0 || o.Connections != 0 {
		t.Fatalf("an idle switch: %+v, %v", o, err)
	}
	if _, err := ovs.Run(t.Context(), "ovs-ofctl", "add-flow", bridge, "udp,actions=ct(commit,zone=7)"); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"1234", "1235", "1236"} {
		packet := strings.Replace(udpPacket, "1234", port, 1)
		if _, err := ovs.Run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "packet-out", bridge, "in_port=LOCAL,packet="+packet+",actions=resubmit(,0)"); err != nil {
			t.Fatal(err)
		}
	}
	if o, err := sw.Occupancy(t.Context()); err != nil || o.Connections != 3 {
		t.Errorf("after three connections: %+v, %v", o, err)
	}
	kernel := ofswitch.New(ovs.RunDir(), bridge, ofswitch.Kernel)
	if _, err := kernel.Occupancy(t.Context()); err == nil {
		t.Error("no error for a datapath that is not there")
	}
}
