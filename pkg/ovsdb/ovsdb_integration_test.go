//go:build integration

package ovsdb_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/lab/vswitch"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

// lab is an Open vSwitch of the test's own, in a network namespace of its own, and a client of it.
type lab struct {
	t     *testing.T
	ctx   context.Context
	netns string
	ovs   *vswitch.Instance
	c     *ovsdb.Client
}

func newLab(t *testing.T) *lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "wo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &lab{t: t, ctx: ctx, netns: filepath.Base(dir)}
	l.run("ip", "netns", "add", l.netns)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", l.netns).CombinedOutput(); err != nil {
			t.Errorf("ip netns del %s: %v: %s", l.netns, err, out)
		}
	})
	l.ovs, err = vswitch.Start(ctx, vswitch.Config{
		RunDir:  filepath.Join(dir, "run"),
		DataDir: filepath.Join(dir, "data"),
		Enter:   []string{"nsenter", "--net=/run/netns/" + l.netns},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.ovs.Stop(); err != nil {
			t.Error(err)
		}
	})
	l.c, err = ovsdb.Connect(ctx, "unix:"+l.ovs.DBSocket(), model.BridgeName, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.c.Close)
	return l
}

func (l *lab) run(argv ...string) string {
	l.t.Helper()
	out, err := exec.CommandContext(l.ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

func (l *lab) vsctl(args ...string) string {
	l.t.Helper()
	out, err := l.ovs.Run(l.ctx, "ovs-vsctl", append([]string{"--timeout=10"}, args...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (l *lab) ofctl(args ...string) string {
	l.t.Helper()
	out, err := l.ovs.Run(l.ctx, "ovs-ofctl", args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// veth makes a veth pair whose one end a pod's port can be.
func (l *lab) veth(name string) {
	l.t.Helper()
	l.run("ip", "-n", l.netns, "link", "add", name, "up", "type", "veth", "peer", "name", name+"p")
}

var want = ovsdb.Bridge{
	Datapath:   "netdev",
	GatewayMTU: 1450,
	Tables:     map[uint8]string{0: "Classifier", 10: "SpoofGuard", 60: "Forwarding", 90: "Output"},
	Version:    "test",
}

func (l *lab) ensure() []string {
	l.t.Helper()
	changed, err := l.c.EnsureBridge(l.ctx, want)
	if err != nil {
		l.t.Fatal(err)
	}
	return changed
}

func attachment(i int) model.Attachment {
	return model.Attachment{
		ContainerID: fmt.Sprintf("c%d", i),
		IfName:      "eth0",
		Pod:         model.PodRef{Namespace: "default", Name: fmt.Sprintf("pod-%d", i), UID: fmt.Sprintf("uid-%d", i)},
		HostIfName:  fmt.Sprintf("p%d", i),
		OFPort:      model.PortPodMin + uint32(i),
		MAC:         model.MAC{0x0a, 0x58, 10, 244, 0, byte(i + 2)},
		IPs:         []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, byte(i + 2)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", i+2))},
	}
}

func TestBridgeFromNothing(t *testing.T) {
	l := newLab(t)
	if changed := l.ensure(); len(changed) != 1 || changed[0] != "bridge created" {
		t.Errorf("first EnsureBridge changed %q, want only the bridge's creation", changed)
	}
	before := l.vsctl("get", "Open_vSwitch", ".", "next_cfg")
	if changed := l.ensure(); len(changed) != 0 {
		t.Errorf("second EnsureBridge changed %q, want nothing", changed)
	}
	if after := l.vsctl("get", "Open_vSwitch", ".", "next_cfg"); after != before {
		t.Errorf("second EnsureBridge wrote: next_cfg went from %s to %s", before, after)
	}
	show := l.ofctl("show", model.BridgeName)
	for _, port := range []string{"1(weft-geneve)", "2(weft-vxlan)", "3(weft0)", "LOCAL(weft)"} {
		if !strings.Contains(show, port) {
			t.Errorf("ovs-ofctl show lacks %s:\n%s", port, show)
		}
	}
	if flows := l.ofctl("dump-flows", model.BridgeName); strings.Contains(flows, "NORMAL") {
		t.Errorf("a fresh bridge forwards before we say so:\n%s", flows)
	}
	l.ofctl("add-flow", model.BridgeName, "table=60,priority=7,actions=resubmit(,90)")
	if flows := l.ofctl("--names", "dump-flows", model.BridgeName); !strings.Contains(flows, "table=Forwarding") || !strings.Contains(flows, "resubmit(,Output)") {
		t.Errorf("dump-flows does not show the tables' names:\n%s", flows)
	}
	link := l.run("ip", "-n", l.netns, "link", "show", model.GatewayName)
	if !strings.Contains(link, "mtu 1450") || !strings.Contains(link, model.GatewayMAC.String()) {
		t.Errorf("gateway interface has another MTU or MAC: %s", link)
	}
}

func TestAddRemovePort(t *testing.T) {
	l := newLab(t)
	l.ensure()
	a := attachment(0)
	l.veth(a.HostIfName)
	start := time.Now()
	if err := l.c.AddPort(l.ctx, a); err != nil {
		t.Fatal(err)
	}
	t.Logf("AddPort took %v", time.Since(start))
	if err := l.c.AddPort(l.ctx, a); err != nil {
		t.Errorf("the same attachment again: %v", err)
	}
	if got := l.vsctl("get", "Interface", a.HostIfName, "ofport"); got != "16" {
		t.Errorf("ofport = %s, want 16", got)
	}
}
