package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/test/lab/datapath"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// Where things are on a node. Its /run is its own, in memory.
const (
	ovsRunDir   = "/run/openvswitch"
	ovsSchema   = "/usr/share/openvswitch/vswitch.ovsschema"
	agentDir    = "/run/weft"
	agentSocket = agentDir + "/agent.sock"
	cniSocket   = agentDir + "/cni.sock"
	agentConfig = agentDir + "/config.yaml"
	kubeconfig  = agentDir + "/kubeconfig"

	// ovsTimeout bounds how long ovs-vsctl waits for the switch, in seconds.
	ovsTimeout = "--timeout=20"
	// readyTimeout bounds how long a program may take to answer after it was started, on a busy and emulated machine. One
	// that ends is not waited for.
	readyTimeout = 5 * time.Minute
	readyPoll    = 20 * time.Millisecond
	restartPause = 500 * time.Millisecond
	// reportTimeout bounds how long an agent may take to say how it is; one that was stopped never does.
	reportTimeout = 5 * time.Second
)

// node is one simulated node with its Open vSwitch and its agent.
type node struct {
	name     string
	zone     string
	index    int
	segment  int
	underlay []netip.Prefix
	podCIDRs []netip.Prefix
	sandbox  sandbox.Node

	mu    sync.Mutex
	agent program // as it runs now
}

// netNS is the file of the node's network namespace.
func (n *node) netNS() string { return fmt.Sprintf("/proc/%d/ns/net", n.sandbox.Holder.PID) }

// path is where the lab finds a file of the node's own.
func (n *node) path(file string) string {
	return fmt.Sprintf("/proc/%d/root%s", n.sandbox.Holder.PID, file)
}

// startNode brings a node up, to the point where its agent takes pods.
func (l *Lab) startNode(ctx context.Context, n *node) (err error) {
	if n.sandbox, err = l.group.Start(n.name, sandbox.Files{}); err != nil {
		return err
	}
	if err := l.datapath.Attach(ctx, l.underlay[n.segment], n.sandbox); err != nil {
		return err
	}
	if err := l.startOVS(ctx, n); err != nil {
		return err
	}
	uplink := datapath.Uplink{MAC: nodeMAC(n.index), Addrs: n.underlay, Gateways: l.gateways(n.segment)}
	if err := l.datapath.Connect(ctx, n.sandbox, uplink); err != nil {
		return err
	}
	return l.startAgent(ctx, n)
}

func (l *Lab) startOVS(ctx context.Context, n *node) error {
	const db = ovsRunDir + "/conf.db"
	// Every Kubernetes node is a router.
	const prepare = `echo 1 >/proc/sys/net/ipv4/ip_forward
[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
# One client is told once a second that there is no host; a probe asks many at once.
echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
[ ! -e /proc/sys/net/ipv6 ] || echo 0 >/proc/sys/net/ipv6/icmp/ratelimit
mkdir "$1"; ovsdb-tool create "$2" "$3"`
	if _, err := n.sandbox.Run(ctx, "sh", "-ec", prepare, "sh", ovsRunDir, db, ovsSchema); err != nil {
		return err
	}
	server, err := l.daemon(n, ovs("ovsdb-server", db, "--remote=punix:"+ovsRunDir+"/db.sock"))
	if err != nil {
		return err
	}
	if err := server.wait(ctx, func(ctx context.Context) error {
		if _, err := os.Stat(n.path(ovsRunDir + "/db.sock")); err != nil {
			return err
		}
		_, err := n.sandbox.Run(ctx, "ovs-vsctl", "--no-wait", "--timeout=2", "init", "--",
			"set", "Open_vSwitch", ".", "external_ids:system-id="+n.name, "external_ids:hostname="+n.name)
		return err
	}); err != nil {
		return err
	}
	vswitchd, err := l.daemon(n, ovs("ovs-vswitchd", "unix:"+ovsRunDir+"/db.sock"))
	if err != nil {
		return err
	}
	return vswitchd.wait(ctx, func(ctx context.Context) error {
		// Without --no-wait this returns when the switch has applied it.
		_, err := n.sandbox.Run(ctx, "ovs-vsctl", ovsTimeout, "set", "Open_vSwitch", ".", "external_ids:rundir="+ovsRunDir)
		return err
	})
}

func (l *Lab) startAgent(ctx context.Context, n *node) error {
	settings, err := agentSettings(l.opt.Settings)
	if err != nil {
		return err
	}
	files := map[string]string{
		agentConfig: fmt.Sprintf("tunnelType: %s\ndatapath: %s\n%s", l.opt.Tunnel, l.datapath, settings),
		kubeconfig: fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: lab
clusters: [{name: lab, cluster: {server: "http://%s"}}]
contexts: [{name: lab, context: {cluster: lab}}]
`, l.opt.Family.api()),
	}
	if err := os.Mkdir(n.path(agentDir), 0o700); err != nil {
		return fmt.Errorf("prepare the agent of node %s: %w", n.name, err)
	}
	for file, text := range files {
		if err := os.WriteFile(n.path(file), []byte(text), 0o600); err != nil {
			return fmt.Errorf("prepare the agent of node %s: %w", n.name, err)
		}
	}
	running, err := l.runAgent(n)
	if err != nil {
		return err
	}
	return running.wait(ctx, func(ctx context.Context) error {
		r, err := n.report(ctx)
		if err == nil && !r.Ready {
			err = errors.New(r.NotReady)
		}
		return err
	})
}

func (l *Lab) runAgent(n *node) (program, error) {
	p, err := l.daemon(n, sandbox.Daemon{Args: []string{l.opt.Agent, "run", "--node-name=" + n.name,
		"--config=" + agentConfig, "--kubeconfig=" + kubeconfig,
		"--cni-socket=" + cniSocket, "--operator-socket=" + agentSocket, "--cni-conf-dir=" + agentDir + "/net.d"}})
	if err != nil {
		return p, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.agent = p
	return p, nil
}

// keepAgent starts the node's agent again whenever it has ended, as a kubelet would, until the lab ends.
func (l *Lab) keepAgent(ctx context.Context, n *node) {
	for running := n.agent; ; {
		select {
		case <-ctx.Done():
			return
		case <-running.running.Exited:
		}
		l.log.Error("the agent ended; it is started again", "node", n.name)
		next, err := l.runAgent(n)
		if err != nil {
			l.log.Error("the agent cannot be started again", "node", n.name, "err", err)
			return
		}
		running = next
		select {
		case <-ctx.Done():
			return
		case <-time.After(restartPause): // one that ends at once must not keep the machine busy
		}
	}
}

// report asks the node's agent how it is, as weftctl status does.
func (n *node) report(ctx context.Context) (report.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	r, err := api.Client{Socket: n.path(agentSocket)}.Status(ctx)
	if err != nil {
		return r, fmt.Errorf("ask the agent of node %s: %w", n.name, err)
	}
	return r, nil
}

func getJSON(ctx context.Context, client *http.Client, method, url string, v any) error {
	request, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var text bytes.Buffer
		_, _ = text.ReadFrom(response.Body) // what could be read is the best message there is
		return errors.New(strings.TrimSpace(text.String()))
	}
	return json.NewDecoder(response.Body).Decode(v)
}

// program is a daemon of a node.
type program struct {
	name    string
	log     string
	running sandbox.Running
}

// ovs is a daemon of Open vSwitch's.
func ovs(args ...string) sandbox.Daemon {
	return sandbox.Daemon{Args: append(args, "--pidfile", "-vconsole:info", "-vsyslog:off"), Nice: sandbox.OVSNice}
}

// daemon starts a program on a node, with its log among the lab's.
func (l *Lab) daemon(n *node, d sandbox.Daemon) (program, error) {
	name := filepath.Base(d.Args[0])
	d.Log = filepath.Join(l.dir, "logs", n.name+"-"+name+".log")
	running, err := n.sandbox.StartDaemon(d)
	return program{name: name + " of " + n.name, log: d.Log, running: running}, err
}

// wait returns when the program is ready, and gives up when it ends or takes too long.
func (p program) wait(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.running.Exited:
			return fmt.Errorf("start %s: it ended; the end of %s:\n%s", p.name, p.log, tail(p.log))
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w (%w); the end of %s:\n%s", p.name, err, ctx.Err(), p.log, tail(p.log))
		case <-time.After(readyPoll):
		}
	}
}

// tail is the end of a log, or its last crash from the beginning.
func tail(path string) string {
	const lines = 15
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	first := max(0, len(all)-lines)
	for i, line := range all {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			first = i
		}
	}
	return "    " + strings.Join(all[first:min(len(all), first+3*lines)], "\n    ")
}
