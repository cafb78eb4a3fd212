//go:build e2e

package main

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

func TestMain(m *testing.M) {
	if err := testenv.Isolate(); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Routes follow their nodes, and those of others stay.
func TestReconcile(t *testing.T) {
	ip(t, "link", "add", "underlay", "type", "veth", "peer", "name", "peer")
	for _, link := range []string{"underlay", "peer"} {
		ip(t, "link", "set", link, "up")
	}
	ip(t, "address", "add", "172.30.0.1/24", "dev", "underlay")
	ip(t, "address", "add", "fd57::1/64", "dev", "underlay", "nodad")
	ip(t, "route", "add", "192.0.2.0/24", "via", "172.30.0.2")
	installed := func() []string {
		var found []string
		for _, family := range []string{"-4", "-6"} {
			for line := range strings.Lines(ip(t, family, "route", "show", "proto", "87")) {
				found = append(found, strings.Join(strings.Fields(line)[:3], " "))
			}
		}
		return found
	}
	for _, step := range []struct {
		desired map[string]string
		want    []string
	}{
		{map[string]string{"10.244.0.0/24": "172.30.0.11", "fd10::/64": "fd57::b"}, []string{"10.244.0.0/24 via 172.30.0.11",
			"fd10::/64 via fd57::b"}},
		{map[string]string{"10.244.0.0/24": "172.30.0.12", "fd10::/64": "fd57::b"}, []string{"10.244.0.0/24 via 172.30.0.12",
			"fd10::/64 via fd57::b"}},
		{map[string]string{"10.244.1.0/24": "172.30.0.12", "fd10::/64": "fd57::c"}, []string{"10.244.1.0/24 via 172.30.0.12",
			"fd10::/64 via fd57::c"}},
		{nil, nil},
	} {
		desired := map[netip.Prefix]netip.Addr{}
		for cidr, gateway := range step.desired {
			desired[netip.MustParsePrefix(cidr)] = netip.MustParseAddr(gateway)
		}
		for range 2 { // again changes nothing
			if err := reconcile(desired); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(step.want, installed()); d != "" {
				t.Errorf("routes for %v (-want +got):\n%s", step.desired, d)
			}
		}
	}
	if out := ip(t, "route", "show", "192.0.2.0/24"); !strings.Contains(out, "172.30.0.2") {
		t.Errorf("another program's route is gone: %q", out)
	}
}
