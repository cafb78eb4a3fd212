// Package vswitch runs a private Open vSwitch: one ovsdb-server and one ovs-vswitchd with a database, sockets and logs
// in a directory of their own, optionally inside a network namespace.
//
// Simulated nodes, the lab and the integration tests all stand on it. An Instance belongs to the goroutine that started
// it; the two daemons are its only state and are ended by the process ids that Start recorded.
package vswitch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Schema is where Debian's openvswitch-switch package puts the database schema.
const Schema = "/usr/share/openvswitch/vswitch.ovsschema"

// startTimeout bounds how long a daemon may take to answer after it was started.
const startTimeout = 20 * time.Second

// Config says where one Open vSwitch lives.
type Config struct {
	// RunDir holds db.sock, the bridges' .mgmt sockets and the pid files. Unix socket paths are limited to 107 bytes, so
	// keep it short.
	RunDir string
	// DataDir holds conf.db and the logs.
	DataDir string
	// Enter is the command that enters the namespaces the daemons run in, for example
	// {"nsenter", "--net=/run/netns/node1"}. Empty means the caller's own.
	Enter []string
}

// Instance is one running Open vSwitch.
type Instance struct {
	cfg    Config
	server *exec.Cmd
	daemon *exec.Cmd
}

// Start creates the database if there is none and starts both daemons. It returns when ovs-vswitchd has applied its
// first configuration. On failure nothing keeps running.
func Start(ctx context.Context, cfg Config) (*Instance, error) {
	for _, dir := range []string{cfg.RunDir, cfg.DataDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("start Open vSwitch: %w", err)
		}
	}
	db := filepath.Join(cfg.DataDir, "conf.db")
	if _, err := os.Stat(db); errors.Is(err, os.ErrNotExist) {
		if out, err := exec.CommandContext(ctx, "ovsdb-tool", "create", db, Schema).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("create Open vSwitch database %s: %w: %s (is openvswitch-switch installed?)", db, err,
				bytes.TrimSpace(out))
		}
	}
	i := &Instance{cfg: cfg}
	if err := i.startServer(ctx); err != nil {
		return nil, errors.Join(err, i.Stop())
	}
	if _, err := i.Run(ctx, "ovs-vsctl", "--no-wait", "init"); err != nil {
		return nil, errors.Join(err, i.Stop())
	}
	if err := i.StartDaemon(ctx); err != nil {
		return nil, errors.Join(err, i.Stop())
	}
	return i, nil
}

// DBSocket is the path of ovsdb-server's Unix socket.
func (i *Instance) DBSocket() string { return filepath.Join(i.cfg.RunDir, "db.sock") }

// RunDir is the directory of the sockets; ovs-ofctl finds a bridge there when OVS_RUNDIR names it.
func (i *Instance) RunDir() string { return i.cfg.RunDir }

// Log returns the path of a daemon's log: "ovsdb-server" or "ovs-vswitchd".
func (i *Instance) Log(daemon string) string { return filepath.Join(i.cfg.DataDir, daemon+".log") }

// PIDs are the process ids of the daemons that run.
func (i *Instance) PIDs() []int {
	var pids []int
	for _, cmd := range []*exec.Cmd{i.server, i.daemon} {
		if cmd != nil {
			pids = append(pids, cmd.Process.Pid)
		}
	}
	return pids
}

// Run runs an OVS tool against this instance, in its namespaces, and returns its standard output.
func (i *Instance) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := i.command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err,
			strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// StartDaemon starts ovs-vswitchd; with StopDaemon it lets a test restart the switch below a running agent.
func (i *Instance) StartDaemon(ctx context.Context) error {
	cmd, err := i.spawn("ovs-vswitchd", "unix:"+i.DBSocket())
	if err != nil {
		return err
	}
	i.daemon = cmd
	// --timeout makes ovs-vsctl wait for ovs-vswitchd to apply the (empty) change, and give up in bounded time.
	if _, err := i.Run(ctx, "ovs-vsctl", fmt.Sprintf("--timeout=%d", int(startTimeout.Seconds())), "set", "Open_vSwitch",
		".", "external_ids:started="+fmt.Sprint(cmd.Process.Pid)); err != nil {
		return fmt.Errorf("ovs-vswitchd did not apply its configuration, see %s: %w", i.Log("ovs-vswitchd"), err)
	}
	return nil
}

// StopDaemon ends ovs-vswitchd the way a package upgrade does: SIGTERM, and SIGKILL when it does not listen.
func (i *Instance) StopDaemon() error {
	err := stop(i.daemon)
	i.daemon = nil
	return err
}

// Stop ends both daemons. It is safe to call more than once.
func (i *Instance) Stop() error {
	err := errors.Join(i.StopDaemon(), stop(i.server))
	i.server = nil
	return err
}

func (i *Instance) startServer(ctx context.Context) error {
	cmd, err := i.spawn("ovsdb-server", filepath.Join(i.cfg.DataDir, "conf.db"), "--remote=punix:"+i.DBSocket())
	if err != nil {
		return err
	}
	i.server = cmd
	deadline := time.Now().Add(startTimeout)
	for {
		if _, err := i.Run(ctx, "ovsdb-client", "--timeout=1", "list-dbs", "unix:"+i.DBSocket()); err == nil {
			return nil
		} else if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("ovsdb-server does not answer, see %s: %w", i.Log("ovsdb-server"), err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// spawn starts a daemon in the foreground as our child, so that its process id is ours to record and to end.
func (i *Instance) spawn(name string, args ...string) (*exec.Cmd, error) {
	args = append(args,
		"--no-chdir",
		"--pidfile",
		"--log-file="+i.Log(name),
		"-vconsole:off",
	)
	cmd := i.command(context.Background(), name, args...)
	// A session of its own: a Ctrl-C meant for the tool must not end the switch before the tool has cleaned up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return cmd, nil
}

func (i *Instance) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	argv := append(append([]string{}, i.cfg.Enter...), append([]string{name}, args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+i.cfg.RunDir, "OVS_DBDIR="+i.cfg.DataDir, "OVS_LOGDIR="+i.cfg.DataDir)
	return cmd
}

func stop(cmd *exec.Cmd) error {
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", cmd.Path, err)
	}
	done := make(chan struct{})
	go func() {
		// The exit status of a daemon that was told to stop says nothing.
		_ = cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(5 * time.Second):
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", cmd.Path, err)
	}
	<-done
	return nil
}
