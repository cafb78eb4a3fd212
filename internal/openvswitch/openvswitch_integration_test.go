//go:build integration || kernel

package openvswitch

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/internal/testing/vswitch"
)

// running is a call of Run.
type running struct {
	o    Options
	end  context.CancelFunc
	done chan error
}

func options(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	return Options{RunDir: dir, Database: filepath.Join(dir, "conf.db"), Schema: vswitch.Schema, Node: "node1",
		Bridge: "weft", RestoreWithin: time.Hour, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// run starts Run; ovs-vswitchd is ready when it returns.
func run(t *testing.T, o Options) *running {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	r := &running{o: o, end: end, done: make(chan error, 1)}
	go func() { r.done <- Run(ctx, o) }()
	t.Cleanup(func() { end(); <-r.done })
	if err := testenv.Poll(t.Context(), 20*time.Second, func(ctx context.Context) error {
		select {
		case err := <-r.done:
			r.done <- nil
			return errors.Join(err, testenv.ErrHopeless)
		default:
		}
		_, err := o.output(ctx, "ovs-appctl", "--timeout=2", "version")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *running) stop() error {
	r.end()
	err := <-r.done
	r.done <- nil // for the cleanup
	return err
}

func (r *running) vsctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.o.vsctl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func waiting(r *running, t *testing.T) string {
	t.Helper()
	return r.vsctl(t, "--if-exists", "get", "Open_vSwitch", ".", "other_config:"+restoreWait)
}

// TestRun: the database and its bridges survive the end of both daemons. ovs-vswitchd waits for the agent's flows where
// Weft's bridge exists, and there alone, but not without bound.
func TestRun(t *testing.T) {
	o := options(t)
	first := run(t, o)
	if got := first.vsctl(t, "get", "Open_vSwitch", ".", "external_ids"); got != "{hostname=node1, system-id=node1}" {
		t.Errorf("external_ids are %s", got)
	}
	if got := waiting(first, t); got != "" {
		t.Errorf("an empty switch waits for flows: %s", got)
	}
	first.vsctl(t, "set", "Open_vSwitch", ".", "external_ids:system-id=before", "--", "add-br", "weft", "--",
		"set", "Bridge", "weft", "datapath_type=netdev")
	if err := first.stop(); err != nil {
		t.Errorf("Run at the end of its context: %v", err)
	}
	for _, daemon := range []string{"ovsdb-server", "ovs-vswitchd"} {
		if _, err := os.Stat(filepath.Join(o.RunDir, daemon+".pid")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s has not ended in order: %v", daemon, err)
		}
	}

	second := run(t, o)
	if got := second.vsctl(t, "get", "Open_vSwitch", ".", "external_ids"); got != "{hostname=node1, system-id=before}" {
		t.Errorf("external_ids are %s", got)
	}
	if got := waiting(second, t); got != `"true"` {
		t.Errorf("flow-restore-wait of a switch with Weft's bridge: %q", got)
	}
	if err := second.stop(); err != nil {
		t.Error(err)
	}

	o.RestoreWithin = time.Millisecond
	third := run(t, o)
	if err := testenv.Poll(t.Context(), 10*time.Second, func(context.Context) error {
		if got := waiting(third, t); got != "" {
			return errors.New("flow-restore-wait stays")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestRunOnNodeWithOpenVSwitch: the node's own Open vSwitch is left alone, and the error says what to do.
func TestRunOnNodeWithOpenVSwitch(t *testing.T) {
	o := options(t)
	own, err := vswitch.Start(t.Context(), vswitch.Config{RunDir: o.RunDir, DataDir: o.RunDir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	})
	o.Database = filepath.Join(t.TempDir(), "conf.db")
	if err := Run(t.Context(), o); !errors.Is(err, ErrOwn) || !strings.Contains(err.Error(), "DaemonSet weft-openvswitch") {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Stat(o.Database); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a database was made: %v", err)
	}
	if _, err := own.Run(t.Context(), "ovs-vsctl", "--timeout=5", "show"); err != nil {
		t.Error(err)
	}
}

// TestRunEndsWithDaemon: when a daemon ends, Run ends the other and says which one ended.
func TestRunEndsWithDaemon(t *testing.T) {
	for _, name := range []string{"ovsdb-server", "ovs-vswitchd"} {
		o := options(t)
		r := run(t, o)
		if _, err := o.output(t.Context(), "ovs-appctl", "-t", name, "exit"); err != nil {
			t.Fatal(err)
		}
		err := <-r.done
		r.done <- nil
		if err == nil || !strings.Contains(err.Error(), name+" has ended: exit status 0") {
			t.Errorf("after the end of %s: %v", name, err)
		}
		left, _ := filepath.Glob(filepath.Join(o.RunDir, "*.pid"))
		if len(left) > 0 {
			t.Errorf("after the end of %s there is %v", name, left)
		}
	}
}

// TestOtherSchema: a database of another version is converted, and keeps what both know.
func TestOtherSchema(t *testing.T) {
	o := options(t)
	schema, err := os.ReadFile(o.Schema)
	if err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(t.TempDir(), "newer.ovsschema")
	text := regexp.MustCompile(`"cksum": "[0-9 ]+",`).ReplaceAllString(string(schema), "")
	version, err := exec.Command("ovsdb-tool", "schema-version", o.Schema).Output()
	if err != nil {
		t.Fatal(err)
	}
	text = strings.Replace(text, strings.TrimSpace(string(version)), "99.0.0", 1)
	text = strings.Replace(text, `"system_type": {`, `"system_future": {"type": "string"}, "system_type": {`, 1)
	if err := os.WriteFile(newer, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := o.output(t.Context(), "ovsdb-tool", "create", o.Database, newer); err != nil {
		t.Fatal(err)
	}
	r := run(t, o)
	if _, err := r.o.vsctl(t.Context(), "get", "Open_vSwitch", ".", "system_future"); err == nil {
		t.Error("the database was not converted")
	}
}
