//go:build integration

package ovsdb_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

// lab is a separate Open vSwitch in its own network namespace, and a client of it.
type lab struct {
	log   *logCounter
	t     *testing.T
	ctx   context.Context
	netns string
	ovs   *vswitch.Instance
	c     *ovsdb.Client
}

// labs numbers the labs.
var labs atomic.Uint32

func newLab(t *testing.T) *lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	dir := t.TempDir()
	l := &lab{t: t, ctx: ctx, log: &logCounter{out: t.Output()},
		netns: fmt.Sprintf("ovsdb-%d-%d", os.Getpid(), labs.Add(1))}
	l.run("ip", "netns", "add", l.netns)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", l.netns).CombinedOutput(); err != nil {
			t.Errorf("ip netns del %s: %v: %s", l.netns, err, out)
		}
	})
	var err error
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
	l.connect()
	return l
}

// logCounter counts warnings.
type logCounter struct {
	out   io.Writer
	warns atomic.Int64
}

func (l *logCounter) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("level=WARN")) {
		l.warns.Add(1)
	}
	return l.out.Write(line)
}

// warnings is the number of warnings of the clients.
func (l *lab) warnings() int64 { return l.log.warns.Load() }

// connect returns a new client, as a starting agent does.
func (l *lab) connect() {
	l.t.Helper()
	var err error
	l.c, err = ovsdb.Connect(l.ctx, "unix:"+l.ovs.DBSocket(), model.BridgeName, slog.New(slog.NewTextHandler(l.log, nil)))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(l.c.Close)
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

// veth creates a veth pair for a pod's port.
func (l *lab) veth(name string) {
	l.t.Helper()
	l.run("ip", "-n", l.netns, "link", "add", name, "up", "type", "veth", "peer", "name", name+"p")
}

var want = ovsdb.Bridge{
	Datapath:   "netdev",
	GatewayMTU: 1450,
	Tables:     map[uint8]string{0: "Classifier", 10: "SpoofGuard", 60: "Forwarding", 90: "Output"},
	Zones:      []ovsdb.Zone{{Number: 22373}, {Number: 22374}, {Number: 22375, Keep: time.Hour}},
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
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 0, byte(i + 2)}),
			netip.MustParseAddr(fmt.Sprintf("fd00::%x", i+2))},
	}
}

// eventually fails the test when the condition does not hold within 20 seconds, ample on a busy machine.
func (l *lab) eventually(what string, condition func() bool) {
	l.t.Helper()
	l.within(20, what, condition)
}

func (l *lab) within(seconds int, what string, condition func() bool) {
	l.t.Helper()
	testenv.Eventually(l.t, time.Duration(seconds)*time.Second, func() error {
		if !condition() {
			return errors.New("not so: " + what)
		}
		return nil
	})
}

// awaitChange receives from Changes.
func (l *lab) awaitChange(what string) {
	l.t.Helper()
	select {
	case <-l.c.Changes():
	case <-time.After(20 * time.Second):
		l.t.Fatalf("no change was reported after %s", what)
	}
}

// drain discards reported changes.
func (l *lab) drain() {
	for {
		select {
		case <-l.c.Changes():
		default:
			return
		}
	}
}

// config is the relevant content of the database as ovs-vsctl prints it, without row ids and in a fixed order.
func (l *lab) config() string {
	l.t.Helper()
	var all []string
	for _, q := range [][2]string{
		{"Bridge", "name,datapath_type,fail_mode,protocols,controller,stp_enable,rstp_enable,other_config,external_ids"},
		{"Interface", "name,type,options,ofport,ofport_request,mac,mtu_request,error,external_ids"},
		{"Port", "name,tag"},
		{"Flow_Table", "name,flow_limit"},
		{"Datapath", "external_ids"},
		{"CT_Zone", "external_ids"},
	} {
		lines := strings.Split(l.vsctl("--format=csv", "--no-headings", "--columns="+q[1], "list", q[0]), "\n")
		slices.Sort(lines)
		all = append(append(all, q[0]), lines...)
	}
	ids := l.vsctl("get", "Bridge", model.BridgeName, "flow_tables")
	for _, pair := range strings.Split(strings.Trim(ids, "{}"), ", ") {
		id, uuid, _ := strings.Cut(pair, "=")
		all = append(all, id+" "+l.vsctl("get", "Flow_Table", uuid, "name"))
	}
	return strings.Join(append(all, l.vsctl("list-zone-tp", "netdev")), "\n")
}
