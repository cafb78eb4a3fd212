// Package openvswitch runs Open vSwitch in a container: ovsdb-server and ovs-vswitchd as children of one process, with
// the database on the node (deploy/openvswitch.yaml).
//
// The datapath and its cache entries stay in the kernel when the container ends, and so do the ports. The next
// ovs-vswitchd starts with flow-restore-wait where Weft's bridge exists, so that they forward until Weft's agent has
// programmed the flows again. The package programs no flows, and has no state between calls of Run.
package openvswitch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Options say where Open vSwitch lives.
type Options struct {
	// RunDir has the sockets and pid files: the node's /run/openvswitch.
	RunDir string
	// Database is the file of the database; its directory exists.
	Database string
	// Schema is the database schema of this version of Open vSwitch.
	Schema string
	// Node is recorded as external_ids:hostname and, in a new database, as external_ids:system-id.
	Node string
	// Bridge is Weft's bridge.
	Bridge string
	// RestoreWithin bounds how long ovs-vswitchd waits for the agent's flows after its start.
	RestoreWithin time.Duration
	Log           *slog.Logger
}

const (
	// startWithin bounds how long a daemon may take to answer, in seconds.
	startWithin = "30"
	// stopWithin bounds how long a daemon may take to end after SIGTERM.
	stopWithin = 10 * time.Second
	// restoreWait keeps ovs-vswitchd from touching the kernel's cache entries until it is removed
	// (ovs-vswitchd.conf.db(5), Open_vSwitch other_config:flow-restore-wait).
	restoreWait = "flow-restore-wait"
)

// ErrOwn is returned on a node that runs its own Open vSwitch.
var ErrOwn = errors.New("the node runs its own Open vSwitch")

// Run runs both daemons until ctx ends or one of them does, and ends both. It returns nil after the end of ctx, and
// ErrOwn, having changed nothing, where another ovsdb-server serves RunDir.
func Run(ctx context.Context, o Options) (err error) {
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", o.socket()); err == nil {
		return errors.Join(conn.Close(), fmt.Errorf("%w: ovsdb-server answers at %s. Weft uses that one; delete the "+
			"DaemonSet weft-openvswitch, or keep it from this node with a nodeSelector", ErrOwn, o.socket()))
	}
	if err := o.prepareDatabase(ctx); err != nil {
		return err
	}
	server, err := o.start("ovsdb-server", o.Database, "--remote=punix:"+o.socket())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	if err := o.initialize(ctx); err != nil {
		return err
	}
	daemon, err := o.start("ovs-vswitchd", "unix:"+o.socket())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.stop()) }()
	timer := time.NewTimer(o.RestoreWithin)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			if err := o.endRestoreWait(ctx); err != nil {
				o.Log.Warn("cannot clear flow-restore-wait", "error", err)
			}
		case <-server.done:
			return server.failed()
		case <-daemon.done:
			return daemon.failed()
		case <-ctx.Done():
			o.Log.Info("Open vSwitch ends; the kernel's datapath stays")
			return nil
		}
	}
}

func (o Options) socket() string { return filepath.Join(o.RunDir, "db.sock") }

// prepareDatabase creates the database, or converts that of another version, newer ones too.
func (o Options) prepareDatabase(ctx context.Context) error {
	if _, err := os.Stat(o.Database); errors.Is(err, os.ErrNotExist) {
		_, err := o.output(ctx, "ovsdb-tool", "create", o.Database, o.Schema)
		return err
	}
	needed, err := o.output(ctx, "ovsdb-tool", "needs-conversion", o.Database, o.Schema)
	if err != nil || strings.TrimSpace(needed) != "yes" {
		return err
	}
	o.Log.Info("converting the database to this version's schema", "database", o.Database)
	_, err = o.output(ctx, "ovsdb-tool", "convert", o.Database, o.Schema)
	return err
}

// initialize waits for ovsdb-server, and says whose database it is. A bridge from before has its flows restored by the
// agent.
func (o Options) initialize(ctx context.Context) error {
	id, err := o.vsctl(ctx, "--retry", "init", "--", "--if-exists", "get", "Open_vSwitch", ".", "external_ids:system-id")
	if err != nil {
		return err
	}
	set := []string{"set", "Open_vSwitch", ".", "external_ids:hostname=" + o.Node}
	if strings.TrimSpace(id) == "" {
		set = append(set, "external_ids:system-id="+o.Node)
	}
	if _, err := o.vsctl(ctx, set...); err != nil {
		return err
	}
	bridges, err := o.vsctl(ctx, "list-br")
	if err != nil {
		return err
	}
	for bridge := range strings.FieldsSeq(bridges) {
		if bridge == o.Bridge {
			o.Log.Info("the kernel's datapath forwards as before until the agent has programmed the flows")
			_, err = o.vsctl(ctx, "set", "Open_vSwitch", ".", "other_config:"+restoreWait+"=true")
		}
	}
	return err
}

// endRestoreWait clears flow-restore-wait if no agent has: it holds for all bridges, which would forward nothing.
func (o Options) endRestoreWait(ctx context.Context) error {
	value, err := o.vsctl(ctx, "--if-exists", "get", "Open_vSwitch", ".", "other_config:"+restoreWait)
	if err != nil || strings.TrimSpace(value) == "" {
		return err
	}
	o.Log.Warn("no agent has programmed the flows; other bridges forward from now on", "after", o.RestoreWithin)
	_, err = o.vsctl(ctx, "remove", "Open_vSwitch", ".", "other_config", restoreWait)
	return err
}

// vsctl changes the database without waiting for ovs-vswitchd.
func (o Options) vsctl(ctx context.Context, args ...string) (string, error) {
	return o.output(ctx, "ovs-vsctl", append([]string{"--db=unix:" + o.socket(), "--no-wait", "--timeout=" + startWithin},
		args...)...)
}

func (o Options) output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = o.environment()
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return string(out), nil
}

func (o Options) environment() []string {
	return append(os.Environ(), "OVS_RUNDIR="+o.RunDir, "OVS_DBDIR="+filepath.Dir(o.Database))
}

// daemon is a child. done is closed when it has ended.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// start starts a daemon that logs to the container's log.
func (o Options) start(name string, args ...string) (*daemon, error) {
	d := &daemon{done: make(chan struct{})}
	d.cmd = exec.Command(name, append(args, "--pidfile", "--no-chdir", "-vconsole:info", "-vsyslog:off", "-vfile:off")...)
	d.cmd.Env = o.environment()
	d.cmd.Stdout, d.cmd.Stderr = os.Stdout, os.Stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for this process, which ends them in order
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = d.cmd.Wait() // ProcessState has it
		close(d.done)
	}()
	return d, nil
}

func (d *daemon) failed() error {
	return fmt.Errorf("%s has ended: %s", filepath.Base(d.cmd.Path), d.cmd.ProcessState)
}

// stop ends a daemon with SIGTERM, upon which ovs-vswitchd leaves the kernel's datapath as it is, and with SIGKILL if
// that is not enough. Idempotent.
func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", d.cmd.Path, err)
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(stopWithin):
	}
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", d.cmd.Path, err)
	}
	<-d.done
	return nil
}
