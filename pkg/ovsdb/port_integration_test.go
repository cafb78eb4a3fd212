//go:build integration

package ovsdb_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

func (l *lab) add(a model.Attachment) {
	l.t.Helper()
	if err := l.c.AddPort(l.ctx, a); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) wantAttachments(want ...model.Attachment) {
	l.t.Helper()
	got, bad, err := l.c.Attachments(l.ctx)
	if err != nil || len(bad) > 0 {
		l.t.Fatalf("Attachments: bad ports %v, error %v", bad, err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		l.t.Errorf("attachments (-want +got):\n%s", diff)
	}
}

// wantPorts compares the names of the ports without those that every bridge has.
func (l *lab) wantPorts(want ...string) {
	l.t.Helper()
	got := strings.Fields(l.vsctl("list-ports", model.BridgeName))
	if diff := cmp.Diff(append(want, "weft-geneve", "weft-gre", "weft-vxlan", "weft0"), got); diff != "" {
		l.t.Errorf("ports (-want +got):\n%s", diff)
	}
}

func TestAddAndRemovePort(t *testing.T) {
	l := newLab(t)
	l.ensure()
	a, b := attachment(0), attachment(1)
	l.veth(a.HostIfName)
	l.veth(b.HostIfName)
	l.add(b)
	l.add(a)
	l.add(a) // again
	l.wantAttachments(a, b)
	l.wantPorts("p0", "p1")
	if show := l.ofctl("show", model.BridgeName); !strings.Contains(show, "16(p0)") || !strings.Contains(show, "17(p1)") {
		t.Errorf("port numbers:\n%s", show)
	}
	for range 2 {
		if err := l.c.RemovePort(l.ctx, a.HostIfName); err != nil {
			t.Error(err)
		}
	}
	l.wantAttachments(b)
	l.wantPorts("p1")
	l.add(a) // the number is free again
	l.wantAttachments(a, b)
	if changed := l.ensure(); len(changed) > 0 {
		t.Errorf("EnsureBridge changed %q, want nothing: pods' ports are not its business", changed)
	}
}

func TestAddPortFails(t *testing.T) {
	l := newLab(t)
	first := attachment(0)
	l.veth(first.HostIfName)
	l.veth("p1")
	if err := l.c.AddPort(l.ctx, first); err == nil || !strings.Contains(err.Error(), "the bridge does not exist") {
		t.Errorf("without a bridge: error %v", err)
	}
	l.ensure()
	l.add(first)

	sameNumber, otherPod, noDevice, noIPs, badNumber := attachment(
		1), attachment(0), attachment(2), attachment(3), attachment(4)
	sameNumber.OFPort = first.OFPort
	otherPod.Pod.Name = "other"
	noIPs.IPs = nil
	badNumber.OFPort = model.PortGateway
	foreign := attachment(5)
	foreign.HostIfName = model.GatewayName
	for _, tt := range []struct {
		what string
		a    model.Attachment
		want string
	}{
		{"port number in use", sameNumber,
			"add port p1 of pod default/pod-1 to bridge weft: ovs-vswitchd gave it port number 5, because the requested 16 " +
				"is in use"},
		{"name of another attachment", otherPod, "port name is taken by another attachment: pod default/pod-0"},
		{"name of a foreign port", foreign, "port name is taken by a port that is not a pod's"},
		{"no such device", noDevice, "ovs-vswitchd: could not open network device p2 (No such device)"},
		{"no address", noIPs, "the attachment has no address"},
		{"not a pod's number", badNumber, "3 is not a pod's port number"},
	} {
		if err := l.c.AddPort(l.ctx, tt.a); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.what, err, tt.want)
		}
	}
	if err := l.c.AddPort(l.ctx, otherPod); !errors.Is(err, ovsdb.ErrPortConflict) {
		t.Errorf("%v is not ErrPortConflict", err)
	}
	l.wantAttachments(first)
	l.wantPorts("p0")
}

func TestBadRows(t *testing.T) {
	l := newLab(t)
	l.ensure()
	a, b := attachment(0), attachment(1)
	l.veth(a.HostIfName)
	l.veth(b.HostIfName)
	l.add(a)
	l.add(b)
	l.vsctl("set", "Interface", a.HostIfName, "external_ids:weft.ips=nonsense")
	l.eventually("the damaged row is reported, the other one is read", func() bool {
		list, bad, err := l.c.Attachments(l.ctx)
		return err == nil && len(list) == 1 && list[0].HostIfName == "p1" &&
			len(bad) == 1 && strings.Contains(bad[0].Error(), "port p0: external_ids:weft.ips: ParseAddr(\"nonsense\")")
	})
	if err := l.c.AddPort(l.ctx, a); !errors.Is(err, ovsdb.ErrPortConflict) {
		t.Errorf("AddPort over a damaged record: error %v, want ErrPortConflict", err)
	}
	if changed := l.ensure(); len(changed) > 0 {
		t.Errorf("EnsureBridge changed %q, want nothing", changed)
	}
	if err := l.c.RemovePort(l.ctx, a.HostIfName); err != nil {
		t.Errorf("a damaged row can be removed: %v", err)
	}
	l.wantAttachments(b)
}

// One transaction has two ports of the same name; it is rejected, and each caller gets its own result.
func TestConcurrentSameName(t *testing.T) {
	l := newLab(t)
	l.ensure()
	l.veth("p0")
	for i := range 10 {
		a, b, twin := attachment(0), attachment(0), attachment(0)
		b.ContainerID = "another"
		errs := make(map[string]error)
		var mu sync.Mutex
		var wg sync.WaitGroup
		for who, x := range map[string]model.Attachment{"a": a, "b": b, "twin": twin} {
			wg.Go(func() {
				err := l.c.AddPort(l.ctx, x)
				mu.Lock()
				defer mu.Unlock()
				errs[who] = err
			})
		}
		wg.Wait()
		winner := a
		if errs["b"] == nil {
			winner = b
		}
		if (errs["a"] == nil) != (errs["twin"] == nil) || (errs["a"] == nil) == (errs["b"] == nil) {
			t.Fatalf("round %d: want the same attachment twice to agree, and the other one not to: %v", i, errs)
		}
		l.wantAttachments(winner)
		if err := l.c.RemovePort(l.ctx, "p0"); err != nil {
			t.Fatal(err)
		}
	}
}

// A pod is replaced by another with the same port name while ovs-vswitchd is busy, so that it sees both changes
// together.
func TestReplacedDevice(t *testing.T) {
	l := newLab(t)
	l.ensure()
	for i, number := range []uint32{16, 21} {
		a := attachment(0)
		a.ContainerID, a.OFPort = fmt.Sprintf("generation%d", i), number
		done := make(chan error, 1)
		if i > 0 {
			l.signalDaemon(syscall.SIGSTOP)
			if err := l.c.RemovePort(l.ctx, "p0"); err != nil {
				t.Fatal(err)
			}
			l.run("ip", "-n", l.netns, "link", "del", "p0")
		}
		l.veth("p0")
		go func() { done <- l.c.AddPort(l.ctx, a) }()
		l.eventuallyPort("p0", a.ContainerID)
		l.signalDaemon(syscall.SIGCONT)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		in := fmt.Sprintf("in_port=%d", number)
		l.ofctl("add-flow", model.BridgeName, in+",actions=drop")
		l.run("ip", "-n", l.netns, "link", "set", "p0p", "up")
		l.run("ip", "-n", l.netns, "addr", "add", "10.9.9.1/24", "dev", "p0p")
		l.run("ip", "-n", l.netns, "neigh", "add", "10.9.9.2", "lladdr", "0a:00:00:00:00:01", "dev", "p0p")
		l.eventually("a packet of the new device arrives", func() bool {
			// Nothing answers, so ping fails; only its packets matter.
			_ = exec.CommandContext(l.ctx, "ip", "netns", "exec", l.netns, "ping", "-c1", "-W0.1", "10.9.9.2").Run()
			return !strings.Contains(l.ofctl("dump-flows", model.BridgeName, in), "n_packets=0")
		})
		l.ofctl("del-flows", model.BridgeName)
	}
}

func TestBurst(t *testing.T) {
	const n = 60
	for _, batch := range []int{1, 256} {
		l := newLab(t)
		ovsdb.SetMaxBatch(l.c, batch)
		l.ensure()
		for i := range n {
			l.veth(attachment(i).HostIfName)
		}
		each := func(do func(i int) error) time.Duration {
			var wg sync.WaitGroup
			start := time.Now()
			for i := range n {
				wg.Go(func() {
					if err := do(i); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			return time.Since(start)
		}
		add := each(func(i int) error { return l.c.AddPort(l.ctx, attachment(i)) })
		list, _, err := l.c.Attachments(l.ctx)
		if err != nil || len(list) != n {
			t.Errorf("%d attachments of %d, %v", len(list), n, err)
		}
		remove := each(func(i int) error { return l.c.RemovePort(l.ctx, attachment(i).HostIfName) })
		l.wantPorts()
		t.Logf("up to %d per transaction: %d ports added in %v, removed in %v", batch, n, add, remove)
	}
}

// signalDaemon stops or continues ovs-vswitchd.
func (l *lab) signalDaemon(sig syscall.Signal) {
	l.t.Helper()
	pids := l.ovs.PIDs()
	if err := syscall.Kill(pids[len(pids)-1], sig); err != nil {
		l.t.Fatal(err)
	}
}

// eventuallyPort waits for the row that a concurrent AddPort writes.
func (l *lab) eventuallyPort(name, container string) {
	l.t.Helper()
	l.eventually("the port is in the database", func() bool {
		out, err := l.ovs.Run(l.ctx, "ovs-vsctl", "--timeout=10", "--if-exists", "get", "Interface", name,
			"external_ids:weft.container-id")
		return err == nil && strings.TrimSpace(out) == container
	})
}

func TestDaemonDown(t *testing.T) {
	l := newLab(t)
	l.ensure()
	if err := l.ovs.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	a := attachment(0)
	l.veth(a.HostIfName)
	ctx, cancel := context.WithTimeout(l.ctx, 100*time.Millisecond)
	defer cancel()
	err := l.c.AddPort(ctx, a)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "is it running?") {
		t.Errorf("AddPort without ovs-vswitchd: error %v", err)
	}
	l.wantAttachments()
	if err := l.ovs.StartDaemon(l.ctx); err != nil {
		t.Fatal(err)
	}
	l.add(a)
}

func TestDaemonRestart(t *testing.T) {
	l := newLab(t)
	l.ensure()
	a := attachment(0)
	l.veth(a.HostIfName)
	l.add(a)
	right := l.config()
	l.ofctl("add-flow", model.BridgeName, "priority=5,actions=drop")
	l.eventually("the switch is watched", func() bool { return l.c.Healthy() == nil })
	l.drain()
	if err := l.ovs.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	l.awaitChange("ovs-vswitchd stopped")
	l.eventually("a stopped switch is not healthy", func() bool { return l.c.Healthy() != nil })
	if err := l.ovs.StartDaemon(l.ctx); err != nil {
		t.Fatal(err)
	}
	l.eventually("it is watched again", func() bool { return l.c.Healthy() == nil })
	l.awaitChange("ovs-vswitchd started")
	if changed := l.ensure(); len(changed) > 0 {
		t.Errorf("EnsureBridge after the restart changed %q, want nothing", changed)
	}
	if now := l.config(); now != right {
		t.Errorf("after the restart (-want +got):\n%s", cmp.Diff(right, now))
	}
	if flows := l.ofctl("dump-flows", model.BridgeName); strings.Contains(flows, "priority=5") ||
		strings.Contains(flows, "NORMAL") {
		t.Errorf("flows after the restart; fail_mode=secure means none:\n%s", flows)
	}
	l.wantAttachments(a)
}

func TestServerRestart(t *testing.T) {
	l := newLab(t)
	l.ensure()
	a, b := attachment(0), attachment(1)
	l.veth(a.HostIfName)
	l.veth(b.HostIfName)
	l.add(a)
	right := l.config()

	// While ovs-vswitchd is stopped, AddPort waits, so the server ends during the call.
	l.signalDaemon(syscall.SIGSTOP)
	pending := make(chan error, 1)
	go func() { pending <- l.c.AddPort(l.ctx, b) }()
	l.eventuallyPort(b.HostIfName, b.ContainerID)
	l.drain()
	server := l.ovs.PIDs()[0]
	if err := syscall.Kill(server, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.eventually("a lost server is not healthy", func() bool { return errors.Is(l.c.Healthy(), ovsdb.ErrDisconnected) })
	l.awaitChange("ovsdb-server stopped")
	l.drain()
	ctx, cancel := context.WithTimeout(l.ctx, 50*time.Millisecond)
	defer cancel()
	if _, _, err := l.c.Attachments(ctx); !errors.Is(err, ovsdb.ErrDisconnected) {
		t.Errorf("Attachments without a server: error %v, want ErrDisconnected", err)
	}
	l.restartServer()
	if err := <-pending; !errors.Is(err, ovsdb.ErrDisconnected) {
		t.Errorf("AddPort under which the server went away: error %v, want ErrDisconnected", err)
	}
	l.awaitChange("ovsdb-server started")
	l.signalDaemon(syscall.SIGCONT)
	l.wantAttachments(a)
	if now := l.config(); now != right {
		t.Errorf("after the restart (-want +got):\n%s", cmp.Diff(right, now))
	}
	if changed := l.ensure(); len(changed) > 0 {
		t.Errorf("EnsureBridge after the restart changed %q, want nothing", changed)
	}
	l.add(b)
	l.wantAttachments(a, b)
	l.drain()
	l.vsctl("del-port", model.BridgeName, model.VXLANPortName)
	l.awaitChange("damage on the new connection")
	l.eventually("it is repaired", func() bool { return len(l.ensure()) > 0 })
}

// restartServer starts an ovsdb-server in place of the lab's, which was ended.
func (l *lab) restartServer() {
	l.t.Helper()
	cmd := exec.Command("nsenter", "--net=/run/netns/"+l.netns, "ovsdb-server",
		filepath.Join(filepath.Dir(l.ovs.Log("ovsdb-server")), "conf.db"), "--remote=punix:"+l.ovs.DBSocket(),
		"--no-chdir", "--unixctl="+filepath.Join(l.ovs.RunDir(), "again.ctl"), "-vconsole:off")
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			l.t.Error(err)
		}
		_ = cmd.Wait() // the test killed it, so its status has no meaning
	})
}

func TestClose(t *testing.T) {
	l := newLab(t)
	l.ensure()
	l.c.Close()
	if _, err := l.c.EnsureBridge(l.ctx, want); err == nil {
		t.Error("EnsureBridge of a closed client succeeded")
	}
	if err := l.c.AddPort(l.ctx, attachment(0)); err == nil {
		t.Error("AddPort of a closed client succeeded")
	}
}

func TestConnectFails(t *testing.T) {
	_, err := ovsdb.Connect(t.Context(), "unix:/nonexistent/db.sock", model.BridgeName, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/db.sock (is ovsdb-server running?)") {
		t.Errorf("Connect to nothing: error %v", err)
	}
}
