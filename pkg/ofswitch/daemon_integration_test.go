//go:build integration

package ofswitch_test

import (
	"context"
	"errors"
	"regexp"
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
		for _, line := range []string{"v4 enabled: 1", "v6 enabled: 1", "min v4 frag size: 400", "min v6 frag size: 400",
			"max num frags (v4/v6): 5000"} {
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

// TestEnsureDaemon: settings that ovs-vswitchd does not store are repaired after an operator changed them, and after a
// restart of ovs-vswitchd.
func TestEnsureDaemon(t *testing.T) {
	const dp = "netdev@ovs-netdev"
	ovs, sw := start(t)
	for name, setting := range map[string]struct {
		ensure      func(context.Context) ([]string, error)
		damage, ask []string // commands of ovs-appctl
		want        string   // part of the answer
	}{
		"TCP windows": {sw.EnsureLiberal,
			[]string{"dpctl/ct-enable-tcp-seq-chk", dp}, []string{"dpctl/ct-get-tcp-seq-chk", dp}, "disabled"},
		"zone limit": {func(ctx context.Context) ([]string, error) { return sw.EnsureZoneLimit(ctx, 7, 9) },
			[]string{"dpctl/ct-set-limits", dp, "zone=7,limit=99"}, []string{"dpctl/ct-get-limits", dp,
				"zone=7"}, "zone=7,limit=9,"},
	} {
		for _, disturb := range []func() error{
			func() error { return nil },
			func() error {
				_, err := ovs.Run(t.Context(), "ovs-appctl", setting.damage...)
				return err
			},
			func() error { return errors.Join(ovs.StopDaemon(), ovs.StartDaemon(t.Context())) },
		} {
			if err := disturb(); err != nil {
				t.Fatal(err)
			}
			for _, want := range []int{1, 0} {
				if changed, err := setting.ensure(t.Context()); err != nil || len(changed) != want {
					t.Errorf("%s: changed %q, %v; want %d changes", name, changed, err, want)
				}
			}
			if out, err := ovs.Run(t.Context(), "ovs-appctl", setting.ask...); err != nil ||
				!strings.Contains(out, setting.want) {
				t.Errorf("%s: %q, %v", name, out, err)
			}
		}
	}
}

// TestOccupancy: the numbers are those of the datapath.
func TestOccupancy(t *testing.T) {
	ovs, sw := start(t)
	if o, err := sw.Occupancy(t.Context()); err != nil || o.CacheLimit == 0 || o.ConnectionLimit == 0 ||
		o.Connections != 0 || !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(o.Version) {
		t.Fatalf("an idle switch: %+v, %v", o, err)
	}
	if _, err := ovs.Run(t.Context(), "ovs-ofctl", "add-flow", bridge, "udp,actions=ct(commit,zone=7)"); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"1234", "1235", "1236"} {
		packet := strings.Replace(udpPacket, "1234", port, 1)
		if _, err := ovs.Run(t.Context(), "ovs-ofctl", "-O", "OpenFlow15", "packet-out", bridge,
			"in_port=LOCAL,packet="+packet+",actions=resubmit(,0)"); err != nil {
			t.Fatal(err)
		}
	}
	if o, err := sw.Occupancy(t.Context()); err != nil || o.Connections != 3 {
		t.Errorf("after three connections: %+v, %v", o, err)
	}
	kernel := ofswitch.New(ovs.RunDir(), ovs.RunDir(), bridge, ofswitch.Kernel)
	if _, err := kernel.Occupancy(t.Context()); err == nil {
		t.Error("no error for a datapath that is not there")
	}
}
